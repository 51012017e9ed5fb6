"""Gates, their fits and their certificates: pure mathematics that knows no model."""
