"""Tokens that are pairs of a key and a value, embedded as a sum, in place of a transformer's own table."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge

from allheads_labs.kit.small_models import as_bridge


class PairEmbedding(nn.Module):
    """Ids: every key with every value, then every key with a question, then, if there is one, a filler."""

    def __init__(self, keys: int, values: int, d_model: int, *, filler: bool) -> None:
        super().__init__()
        self.keys, self.values, self.question, self.filler = (
            nn.Parameter(torch.randn(count, d_model)) for count in (keys, values, 1, int(filler))
        )

    def table(self) -> Float[Tensor, "d_vocab d_model"]:
        """A row for every id.

        >>> PairEmbedding(3, 4, 8, filler=True).table().shape
        torch.Size([16, 8])
        """
        return torch.cat([(self.keys[:, None] + self.values).flatten(0, 1), self.keys + self.question, self.filler])

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """What a body reads."""
        return F.embedding(tokens, self.table())


class PairModel(nn.Module):
    """A network, its ``body``, that reads a pair embedding."""

    embed: PairEmbedding
    body: Any

    def trained_parameters(self) -> list[nn.Parameter]:
        """All but a transformer's own table, which the pair embedding replaces, and its positions."""
        idle = ("wte.", "wpe.")
        return [p for name, p in self.named_parameters() if p.numel() and not any(part in name for part in idle)]

    def bridge(self) -> TransformerBridge:
        """The transformer as a bridge that reads ids; its first logits are those of the values. Wraps it in place."""
        with torch.no_grad():
            self.body.transformer.wte.weight.copy_(self.embed.table())
        return as_bridge(self.body, type(self).__name__)
