"""What random cases have in common: a stream, an MLP, heads evaluated in a dtype beside their rounding bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from allheads.gates import GateSum
from allheads.pure.runner import Heads, allowed, attend
from allheads_labs.theorems.mlp import PlainMLP
from allheads_labs.theorems.rounding import rounding
from allheads_labs.theorems.theorem import DIMENSIONS, TOKENS, Trial

#: Neurons of the random MLPs, and d_head of the random ordinary heads.
NEURONS, D_HEAD = 40, 8


def normal(draw: Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers that float32 holds exactly, in float64."""
    return (scale * torch.randn(shape, generator=draw)).double()


def stream(draw: Generator) -> Tensor:
    """A random residual stream."""
    return normal(draw, TOKENS, DIMENSIONS)


def random_mlp(draw: Generator, gates: GateSum) -> PlainMLP:
    """An MLP whose preactivations span about -8 to 8."""
    return PlainMLP(
        normal(draw, DIMENSIONS, NEURONS, scale=0.4),
        normal(draw, NEURONS),
        normal(draw, NEURONS, DIMENSIONS, scale=0.2),
        normal(draw, DIMENSIONS),
        gates,
    )


def ordinary_heads(draw: Generator, count: int) -> Heads:
    """Causal heads with scores of about -5 to 5."""
    parts: dict[str, Any] = {name: normal(draw, count, DIMENSIONS, D_HEAD, scale=0.2) for name in ("W_Q", "W_K", "W_V")}
    W_O = normal(draw, count, D_HEAD, DIMENSIONS, scale=0.2)
    return Heads(W_O=W_O, mask="causal", scale=D_HEAD**-0.5, **parts)


def evaluated(x: Tensor, groups: list[Heads], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the heads write in ``dtype``, and how far rounding may move it there and in a float64 reference."""
    out, bound = torch.zeros_like(x), torch.zeros_like(x)
    for heads in groups:
        seen = allowed(heads, len(x))
        out = out + attend(x.to(dtype), heads.to(dtype), seen).double()
        bound += rounding(x, heads, seen, dtype) + rounding(x, heads, seen, torch.float64)
    return out, bound


def compared(groups: list[Heads], out: Tensor, wanted: Tensor, bound: Tensor) -> Trial:
    """The error and the bound of the entry that comes nearest to its bound, or leaves it farthest behind."""
    error = (out - wanted).abs()
    where = int((error / bound.clamp_min(1e-300)).argmax())
    heads, tokens = sum(len(each.W_O) for each in groups), max(each.tokens for each in groups)
    return Trial(heads, tokens, float(error.flatten()[where]), float(bound.expand_as(error).flatten()[where]))
