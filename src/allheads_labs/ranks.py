"""Rank correlation: do two readings put things in the same order?"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError


def rank_correlation(ours: Float[Tensor, "*batch n"], theirs: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Spearman's, over the last dimension, between -1 and 1; what is equal shares its rank, what is constant gives nan.

    Compares every pair: for tens of values, not for thousands.

    Raises `AllHeadsError` for different shapes, or fewer than two values.

    >>> import torch
    >>> round(float(rank_correlation(torch.tensor([1.0, 5.0, 7.0]), torch.tensor([0.1, 0.9, 0.2]))), 6)
    0.5
    """
    if ours.shape != theirs.shape or ours.shape[-1] < 2:
        got = f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
        raise AllHeadsError("two readings of the same two things or more", got, "Give a value of each for each thing.")
    one, other = _centred(ours), _centred(theirs)
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))


def _centred(values: Tensor) -> Tensor:
    own, others = values[..., :, None], values[..., None, :]
    ranks = (own > others).double().sum(-1) + 0.5 * (own == others).double().sum(-1)
    return ranks - ranks.mean(-1, keepdim=True)
