"""How much of a neuron's variance a grouping of positions explains: by token, by position.

With n positions in G groups of sizes n_g, the sums of squares around the mean split into those within and between
groups; the share between them is eta squared, and corrected for what G groups explain by chance (epsilon squared,
Kelley 1935; the adjusted R squared of one-way analysis of variance),

    1 - (within / (n - G)) / (total / (n - 1)),        at most 1, and about 0, or a little below, for noise.

The correction takes positions for independent. They are not, within one text: what a text is about adds a little.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: A variance below this share of the mean square is rounding.
ROUNDING = 1e-12


def explained(
    counts: Int[Tensor, " group"], sums: Float[Tensor, "group neuron"], squares: Float[Tensor, " neuron"]
) -> Float[Tensor, " neuron"]:
    """The corrected share of variance between groups; NaN for a constant, or with no more positions than groups.

    >>> counts, sums = torch.tensor([2, 2]), torch.tensor([[2.0, 1.0], [6.0, 1.0]]).double()
    >>> explained(counts, sums, torch.tensor([20.0, 1.0]).double())
    tensor([1., nan], dtype=torch.float64)
    """
    some = counts > 0
    n, size = int(counts.sum()), counts[some].double()[:, None]
    mean = sums.sum(0) / max(n, 1)
    total = spread(n, mean, squares)
    between = ((sums[some] / size - mean).square() * size).sum(0)
    free = n - len(size)
    if free <= 0:
        return torch.full_like(total, torch.nan)
    share = 1 - (total - between) / free * ((n - 1) / total)
    return share.masked_fill(total == 0, torch.nan)


def spread(n: int, mean: Float[Tensor, " neuron"], squares: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    """The sum of squares around the mean; 0 where it is rounding."""
    total = squares - n * mean.square()
    return total.masked_fill(total <= ROUNDING * squares, 0.0)
