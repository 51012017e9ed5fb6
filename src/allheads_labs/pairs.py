"""Tokens that are pairs: an embedding of a key and a value as their sum, in place of a transformer's own table."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


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


def moved(learner: nn.Module) -> list[nn.Parameter]:
    """What training moves: not a transformer's own table, which a `PairEmbedding` replaces, nor its positions."""
    idle = ("wte.", "wpe.")
    return [p for name, p in learner.named_parameters() if p.numel() and not any(part in name for part in idle)]
