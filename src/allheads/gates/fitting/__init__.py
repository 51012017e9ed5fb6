"""Where the committed gates come from: families, minimax fits, certificates; only its commands import it."""
