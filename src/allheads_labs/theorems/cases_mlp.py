"""Random cases: neurons, linear maps, activations in place, MLPs, a whole transformer."""

from __future__ import annotations

import torch
from torch import Generator
from torch.nn import functional as F

from allheads.gates import GateSum, approximate
from allheads.pure.runner import Heads, logits
from allheads_labs.theorems.activation import activation_heads
from allheads_labs.theorems.cases import (
    D_HEAD,
    NEURONS,
    compared,
    evaluated,
    normal,
    ordinary_heads,
    random_mlp,
    stream,
)
from allheads_labs.theorems.induction import Transformer, attention_only
from allheads_labs.theorems.linear import linear_heads
from allheads_labs.theorems.mlp import PlainMLP, in_one_layer, in_three_layers
from allheads_labs.theorems.neuron import neuron_heads
from allheads_labs.theorems.theorem import DIMENSIONS, TOKENS, Trial

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
    return Trial(sum(len(h.W_O) for h in groups), max(h.tokens for h in groups), float(error), None)
