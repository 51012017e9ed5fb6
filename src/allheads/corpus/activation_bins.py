"""How the activations of a neuron are distributed: counts in fixed bins, which add up exactly whatever the parts.

Bins are the same for every neuron and model: two to an octave, from 2^-12 to 2^12, for either sign. What is smaller is
one bin around zero, and the last bin of each sign has no end. Within a bin activations are taken to be spread evenly.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Bins of one sign, and of both with that around zero.
ONE_SIDE = 48
BINS = 2 * ONE_SIDE + 1
#: The smallest size that is not around zero.
SMALLEST = 2.0**-12
#: In float32 all but these last bits are the sign and the half octave, which for `SMALLEST` is the second number.
_REST, _FIRST = 22, (127 - 12) * 2


def bin_counts(values: Float[Tensor, "position neuron"]) -> Int[Tensor, "neuron bin"]:
    """How many values of each neuron are in each bin, the most negative first.

    >>> bin_counts(torch.tensor([[0.0], [-1.0], [1.4], [1.6]])).nonzero()[:, 1].tolist()
    [23, 48, 73, 74]
    """
    bits = values.float().contiguous().view(torch.int32)
    bins = (((bits & 0x7FFFFFFF) >> _REST) - (_FIRST - 1)).clamp_(0, ONE_SIDE)
    bins *= (bits >> 31) | 1  # the sign
    bins += ONE_SIDE + BINS * torch.arange(values.shape[1], dtype=torch.int32, device=values.device)
    return torch.bincount(bins.flatten(), minlength=BINS * values.shape[1]).view(-1, BINS)


def edges(lowest: float, highest: float) -> Float[np.ndarray, " edge"]:
    """Where bins begin and end, cut to the range from the lowest to the highest activation."""
    halves = np.arange(ONE_SIDE)
    side = SMALLEST * 2.0 ** (halves // 2) * np.where(halves % 2, 1.5, 1.0)
    return np.concatenate([[-np.inf], -side[::-1], side, [np.inf]]).clip(lowest, highest)


def quantiles(
    counts: Int[np.ndarray, " bin"], lowest: float, highest: float, shares: Float[np.ndarray, " share"]
) -> Float[np.ndarray, " share"]:
    """The activations below which these shares of all are.

    >>> counts = bin_counts(torch.linspace(0, 3, 1001)[:, None])[0].numpy()
    >>> quantiles(counts, 0.0, 3.0, np.array([0.0, 0.5, 1.0])).round(2).tolist()
    [0.0, 1.5, 3.0]
    """
    some, ends = counts > 0, edges(lowest, highest)
    below = np.concatenate([[0], counts[some].cumsum()])
    starts, widths = ends[:-1][some], np.diff(ends)[some]
    wanted = shares * below[-1]
    at = np.clip(np.searchsorted(below, wanted, side="right") - 1, 0, len(widths) - 1)
    return starts[at] + (wanted - below[at]) / counts[some][at] * widths[at]


def even_bins(counts: Int[np.ndarray, " bin"], lowest: float, highest: float, number: int) -> Float[np.ndarray, " bin"]:
    """The same counts in so many bins of one width, from the lowest to the highest activation.

    >>> even_bins(bin_counts(torch.tensor([[0.0], [1.0]]))[0].numpy(), 0.0, 1.0, 2).tolist()
    [1.0, 1.0]
    """
    below = np.concatenate([[0.0], counts.cumsum()])
    reached = np.interp(np.linspace(lowest, highest, number + 1), edges(lowest, highest), below)
    reached[0], reached[-1] = 0.0, below[-1]
    return np.diff(reached)
