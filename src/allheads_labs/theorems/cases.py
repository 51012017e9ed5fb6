"""What random cases have in common, and those of neurons, linear maps, activations, MLPs and transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from allheads.gates import GateSum, approximate
from allheads.pure.runner import Heads, allowed, attend, logits
from allheads_labs.theorems.mlps import (
    PlainMLP,
    Transformer,
    activation_heads,
    attention_only,
    in_one_layer,
    in_three_layers,
    linear_heads,
    neuron_heads,
)
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
        mask = allowed(heads, len(x))
        out = out + attend(x.to(dtype), heads.to(dtype), mask).double()
        bound += rounding(x, heads, mask, dtype) + rounding(x, heads, mask, torch.float64)
    return out, bound


def compared(groups: list[Heads], out: Tensor, wanted: Tensor, bound: Tensor) -> Trial:
    """The error and the bound of the entry that comes nearest to its bound, or leaves it farthest behind."""
    error = (out - wanted).abs()
    where = int((error / bound.clamp_min(1e-300)).argmax())
    return _trial(groups, float(error.flatten()[where]), float(bound.expand_as(error).flatten()[where]))


def _trial(groups: list[Heads], error: float, bound: float | None) -> Trial:
    heads, tokens = sum(len(group.W_O) for group in groups), max(group.tokens for group in groups)
    return Trial(heads, tokens, error, bound)


#: SiLU is nowhere steeper.
SILU_STEEPEST = 1.0999


def neurons(gates: GateSum, draw: Generator, dtype: torch.dtype) -> Trial:
    """An MLP as heads of internal dimension 1."""
    x, mlp = stream(draw), random_mlp(draw, gates)
    groups = neuron_heads(mlp.W_in, mlp.b_in, mlp.W_out, gates)
    out, bound = evaluated(x, groups, dtype)
    return compared(groups, out, mlp(x) - mlp.b_out, bound + gates.max_error * mlp.W_out.abs().sum(0))


def linear(draw: Generator, dtype: torch.dtype) -> Trial:
    """A random square matrix and a vector."""
    x, M, b = stream(draw), normal(draw, DIMENSIONS, DIMENSIONS), normal(draw, DIMENSIONS)
    groups = linear_heads(M, b, d_head=D_HEAD)
    out, bound = evaluated(x, groups, dtype)
    return compared(groups, out, x @ M + b, bound)


def in_place(gates: GateSum, draw: Generator, dtype: torch.dtype) -> Trial:
    """An activation on a random half of the coordinates; the others are written exact zeros."""
    x, chosen = stream(draw), torch.randperm(DIMENSIONS, generator=draw)[: DIMENSIONS // 2]
    groups = activation_heads(gates, chosen, DIMENSIONS)
    out, bound = evaluated(x, groups, dtype)
    wanted = torch.zeros_like(x)
    wanted[:, chosen] = gates.activation(x[:, chosen]) - x[:, chosen]
    bound[:, chosen] += gates.max_error
    return compared(groups, out, wanted, bound)


def one_layer(draw: Generator, dtype: torch.dtype) -> Trial:
    """A SiLU MLP as one layer of attention."""
    x, mlp = stream(draw), random_mlp(draw, approximate("silu"))
    groups = in_one_layer(mlp).heads
    out, bound = evaluated(x, groups, dtype)
    return compared(groups, out, mlp(x), bound)


def three_layers(draw: Generator, dtype: torch.dtype) -> Trial:
    """A SiLU MLP as linear, activation and linear heads; the error of each layer passes through the next."""
    x, mlp = stream(draw), random_mlp(draw, approximate("silu"))
    wide, d_model = F.pad(x, (0, NEURONS)), x.shape[1]
    into, act, out = (layer.heads for layer in in_three_layers(mlp, d_head=D_HEAD))
    written, first = evaluated(wide, into, dtype)
    wide = wide + written
    written, second = evaluated(wide, act, dtype)
    wide = wide + written
    hidden = SILU_STEEPEST * first[:, d_model:] + second[:, d_model:]
    written, third = evaluated(wide, out, dtype)
    bound = hidden @ mlp.W_out.abs() + third[:, :d_model]
    return compared([*into, *act, *out], written[:, :d_model], mlp(x), bound)


def transformer(draw: Generator, dtype: torch.dtype) -> Trial:
    """Two attention layers and two SiLU MLPs without norms, all masks in weights."""
    silu = approximate("silu")
    layers: list[Heads | PlainMLP] = [
        ordinary_heads(draw, 2), random_mlp(draw, silu), ordinary_heads(draw, 2), random_mlp(draw, silu)
    ]  # fmt: skip
    model = Transformer(
        embed=normal(draw, 50, DIMENSIONS),
        positions=normal(draw, TOKENS, DIMENSIONS),
        layers=layers,
        unembed=normal(draw, DIMENSIONS, 50, scale=0.2),
    )
    tokens, pure = torch.randint(50, (TOKENS,), generator=draw), attention_only(model)
    error = (logits(pure, tokens, dtype, "weights").double() - model(tokens)).abs().max()
    groups = [heads for sublayer in pure.sublayers for heads in sublayer.heads]
    return _trial(groups, float(error), None)
