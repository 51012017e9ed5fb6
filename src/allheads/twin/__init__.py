"""The twin: how a model becomes one, its layers and heads by label, prompts, and activations by name."""
