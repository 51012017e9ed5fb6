"""A mixture of experts as banks of heads: attention over experts, then over bias tokens.

Expert e's neuron heads write ``r_e`` times what they would alone, ``r_e`` the router's weight for the token: each
value is scaled by it, and by zero where the token is not routed to e. Rows that an expert does not get are not
computed, unless a hook looks or patterns are frozen: then every expert sees every row, and hook tensors have the usual
shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allheads.heads.bank import HeadBank


class MixtureBank(nn.ModuleList):
    """The banks of all experts, called as a stack of experts is called."""

    def __init__(self, banks: Sequence[HeadBank]) -> None:
        super().__init__(banks)

    def __iter__(self) -> Iterator[HeadBank]:
        """The banks, expert by expert."""
        return cast(Iterator[HeadBank], super().__iter__())

    def forward(
        self,
        rows: Float[Tensor, "row d_model"],
        index: Int[Tensor, "row k"] | None = None,
        weights: Float[Tensor, "row k"] | None = None,
    ) -> Float[Tensor, "row d_model"]:
        """The sum over experts, each on its rows; without routes, rows are sorted by expert, equally many each."""
        if index is None or weights is None:
            parts = rows.view(len(self), -1, rows.shape[-1])
            return torch.cat([bank(part[None])[0] for bank, part in zip(self, parts, strict=True)])
        out = torch.zeros_like(rows)
        for number, bank in enumerate(self):
            chosen = index == number
            routed = chosen.any(-1).nonzero()[:, 0]
            if bank.hooks.any_watched or bank.frozen is not None:
                scale = torch.where(chosen, weights, 0).sum(-1)
                out = out + bank(rows[None], scale[None])[0]
            elif len(routed):
                scale = torch.where(chosen, weights, 0)[routed].sum(-1)
                out = out.index_add(0, routed, bank(rows[routed][None], scale[None])[0].to(out.dtype))
        return out
