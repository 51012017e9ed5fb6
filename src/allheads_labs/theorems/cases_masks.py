"""Random cases: masks in weights, and ordinary heads beside bias tokens."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from allheads.pure.runner import Heads, allowed, attend, in_weights, keys, patterns, queries
from allheads_labs.theorems.cases import D_HEAD, compared, normal, ordinary_heads, stream
from allheads_labs.theorems.masks import (
    beside_bias_tokens,
    causal,
    checked_mask,
    checked_omega,
    for_scores,
    sliding_window,
)
from allheads_labs.theorems.theorem import DIMENSIONS, TOKENS, Trial


def causal_mask(draw: Generator, dtype: torch.dtype) -> Trial:
    """The mask of a language model."""
    return _masked(stream(draw), ordinary_heads(draw, 1), causal(TOKENS), dtype)


def window_mask(draw: Generator, dtype: torch.dtype) -> Trial:
    """Five positions back."""
    return _masked(stream(draw), ordinary_heads(draw, 1), sliding_window(TOKENS, 5), dtype)


def arbitrary_mask(draw: Generator, dtype: torch.dtype) -> Trial:
    """Two keys in five at random, and the token itself."""
    mask = (torch.rand(TOKENS, TOKENS, generator=draw) < 0.4) | torch.eye(TOKENS).bool()
    return _masked(stream(draw), ordinary_heads(draw, 1), mask, dtype)


def neuron_mask(draw: Generator, dtype: torch.dtype) -> Trial:
    """A token itself and three bias tokens."""
    heads = Heads(
        W_Q=normal(draw, 1, DIMENSIONS, D_HEAD, scale=0.2),
        W_O=normal(draw, 1, D_HEAD, DIMENSIONS),
        bias_keys=normal(draw, 1, 3, D_HEAD),
        bias_offsets=normal(draw, 1, 3),
    )
    return _masked(stream(draw), heads, allowed(heads, TOKENS)[0], dtype)


def _masked(x: Tensor, heads: Heads, mask: Tensor, dtype: torch.dtype) -> Trial:
    return Trial(len(heads.W_O), heads.tokens, *mask_error(x.to(dtype), heads.to(dtype), mask))


def mask_error(x: Tensor, heads: Heads, mask: Tensor, omega: float | None = None) -> tuple[float, float]:
    """The largest error of an entry of a pattern for having its mask in weights, and its bound.

    The pattern under the mask is computed in float64 from the same queries and keys. Omega is chosen unless given.
    """
    checked_mask(mask, (len(x), len(x) + heads.tokens))
    chosen = for_scores(x, heads, mask)
    value = checked_omega(chosen.value if omega is None else omega, x.dtype)
    rest = x.new_zeros(heads.tokens, x.shape[1])
    positions = len(x) + heads.tokens
    augmented = torch.cat([torch.cat([x, rest]), torch.eye(positions).to(x)], 1)
    weights = in_weights(heads, mask[None], value, rest)
    got = patterns(augmented, weights)[:, : len(x)].double()
    q, k = (project(augmented, weights)[..., : heads.W_O.shape[1]].double() for project in (queries, keys))
    score = heads.scale * (q @ k.mT)[:, : len(x)]
    if heads.bias_offsets is not None:
        score[:, :, len(x) :] += heads.bias_offsets.double()[:, None]
    exact = score.masked_fill(~mask, -torch.inf).softmax(-1)
    return float((got - exact).abs().max()), chosen.bound


def beside_bias(draw: Generator, dtype: torch.dtype) -> Trial:
    """Two ordinary heads and three bias positions."""
    x, heads = stream(draw), ordinary_heads(draw, 2)
    mask = allowed(heads, TOKENS)
    omega = for_scores(x.to(dtype), heads.to(dtype), mask[0])
    got = beside_bias_tokens(x.to(dtype), heads.to(dtype), bias_tokens=3, omega=omega.value).double()
    wanted = F.pad(attend(x, heads, mask), (0, 0, 0, 3))
    # No entry of a pattern is off by more than omega's bound, no value by more than its own rounding.
    largest = (x.abs() @ heads.W_V.abs()).amax(1) if heads.W_V is not None else x.new_zeros(2, D_HEAD)
    off = (TOKENS + 3) * omega.bound + torch.finfo(dtype).eps * (DIMENSIONS + TOKENS + D_HEAD)
    return compared([heads], got, wanted, off * torch.einsum("he,hed->d", largest, heads.W_O.abs())[None])
