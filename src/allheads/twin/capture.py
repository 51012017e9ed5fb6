"""Activations by name."""

from __future__ import annotations

#: Where the stream begins: tokens, learned positions, types of segments.
EMBEDDINGS = ("embed.hook_out", "pos_embed.hook_out", "token_type_embed.hook_out")
