"""Random cases: products of gates, gated units, and what no heads can do."""

from __future__ import annotations

import torch
from torch import Generator
from torch.nn import functional as F

from allheads.gates import Gate, GateSum, activation_named
from allheads.pure.runner import Norm
from allheads_labs.theorems.cases import NEURONS, compared, evaluated, normal, stream
from allheads_labs.theorems.gated import gated_heads, one_head_error, product_head, reach, witness, worst_input
from allheads_labs.theorems.theorem import DIMENSIONS, Trial


def random_gate(draw: Generator, tokens: int) -> Gate:
    """Offsets and slopes of about 1."""
    offsets, slopes = normal(draw, tokens), normal(draw, tokens)
    return Gate(tuple(offsets.tolist()), tuple(slopes.tolist()))


def product(draw: Generator, dtype: torch.dtype) -> Trial:
    """A gate with two bias tokens times one with three."""
    x, readings, value = stream(draw), normal(draw, DIMENSIONS, 2, scale=0.4), normal(draw, DIMENSIONS)
    first, second = random_gate(draw, 2), random_gate(draw, 3)
    head = product_head(first, second, readings, value)
    out, bound = evaluated(x, [head], dtype)
    s, t = (x @ readings).unbind(1)
    return compared([head], out, (first(s) * second(t))[:, None] * value, bound)


def gated(gates: GateSum, draw: Generator, dtype: torch.dtype) -> Trial:
    """A SwiGLU layer."""
    x = stream(draw)
    W_gate, W_in = (normal(draw, DIMENSIONS, NEURONS, scale=0.4) for _ in range(2))
    W_out = normal(draw, NEURONS, DIMENSIONS, scale=0.2)
    groups = gated_heads(W_gate, W_in, W_out, gates)
    out, bound = evaluated(x, groups, dtype)
    g, u = x @ W_gate, x @ W_in
    return compared(groups, out, (F.silu(g) * u) @ W_out, bound + (gates.bound(g) * u.abs()) @ W_out.abs())


def one_head(draw: Generator, dtype: torch.dtype) -> Trial:
    """A random gate times the best of many multiples, on ``|g| <= 2``: off by 0.278 at least."""
    tokens = int(torch.randint(1, 6, (1,), generator=draw))
    gate, multiples = random_gate(draw, tokens), torch.linspace(-1, 4, 51).tolist()
    return Trial(1, tokens, min(one_head_error(gate, delta, reach=2.0) for delta in multiples), 0.278)


def finite_sum(draw: Generator, dtype: torch.dtype) -> Trial:
    """A random sum of gates, where it must be off."""
    heads = int(torch.randint(1, 6, (1,), generator=draw))
    gates = tuple(random_gate(draw, 2) for _ in range(heads))
    delta = tuple(normal(draw, heads, scale=20.0).tolist())
    gate_sum = GateSum(activation_named("silu"), True, gates, (0.0,) * heads, delta, torch.inf)
    g, apart = witness(gate_sum)
    at = torch.tensor(g, dtype=torch.float64)
    return Trial(heads, 2, float((gate_sum(at) - F.silu(at)).abs()), apart)


def behind_norm(draw: Generator, dtype: torch.dtype) -> Trial:
    """Random and worst inputs of a random norm, as a share of the bound; a few units in the last place for rounding."""
    gain, shift, w = normal(draw, DIMENSIONS), normal(draw, DIMENSIONS), normal(draw, DIMENSIONS)
    b, centred = float(normal(draw, 1)), bool(torch.rand((), generator=draw) < 0.5)
    norm = Norm(gain, shift, centred, 1e-5)
    x = torch.cat([1e3 * normal(draw, 500, DIMENSIONS), worst_input(norm, w, b)[None]]).to(dtype)
    reached = float((norm(x).double() @ w + b).abs().max()) / reach(norm, w, b)
    return Trial(0, 0, reached, 1.0 + 4 * DIMENSIONS * torch.finfo(dtype).eps)
