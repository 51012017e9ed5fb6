"""A bank with its gates held: a linear map of the stream, up to a constant.

With patterns P held at those of one input, a plain neuron's heads write ``sum_h P_h (alpha_h t + delta_h)``, and a
gated one's ``sum_h P_h delta_h u``: a slope times the preactivation t (or the value input u), and a constant. At that
input this is the bank's own output. A gated neuron is a product, and may share its credit otherwise: with the
fraction ``gate_share`` = c it writes ``(1 - c) F_0 u + c (u_0 F_0 / g_0) g``, where 0 marks what is held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.gates.gates import GateSum
from allheads.heads.evaluate import patterns_on_self, projections, written
from allheads.heads.hooks import HeadHooks
from allheads.heads.weights import HeadWeights

#: Preactivations nearer to 0 than this have the slope that the activation has there, measured this far away.
_NEAR, _STEP = 1e-12, 1e-4


@dataclass(frozen=True)
class Slopes:
    """What neurons are, per unit of what they read, at the input that is held.

    A plain neuron is ``value * t + constant``. A gated one is ``value * u``, or ``gate * g`` where ``gate`` is
    ``u_0 F_0 / g_0``.
    """

    value: Float[Tensor, "batch pos d_mlp"]
    constant: Float[Tensor, "batch pos d_mlp"] | None
    gate: Float[Tensor, "batch pos d_mlp"] | None


@dataclass
class Held:
    """What a bank holds: a share of credit, and slopes that are recorded when it first runs."""

    gate_share: float = 0.0
    slopes: Slopes | None = None


def linear(
    heads: HeadWeights, x: Float[Tensor, "batch pos d_model"], at: HeadHooks, held: Held, gates: GateSum, closed: bool
) -> Float[Tensor, "batch pos d_model"]:
    """The bank's output with its gates held; where ``closed``, it is that of the activation itself at the reference."""
    t, u = (projected[..., 0, :] for projected in projections(heads, x, at))
    if held.slopes is None:
        held.slopes = _slopes(heads, x.detach(), t.detach(), u.detach(), gates, closed, held.gate_share > 0)
        if held.slopes.constant is not None and torch.is_grad_enabled():
            held.slopes.constant.requires_grad_()
    slopes, share = held.slopes, held.gate_share
    if slopes.constant is not None:
        post = slopes.value * t + slopes.constant
    elif slopes.gate is None:
        post = slopes.value * u
    elif share == 1.0:
        post = slopes.gate * t
    else:
        post = (1.0 - share) * (slopes.value * u) + share * (slopes.gate * t)
    return written(heads, at.hook_post(post.to(x.dtype)), None)


@torch.no_grad()
def _slopes(
    heads: HeadWeights, x: Tensor, t: Tensor, u: Tensor, gates: GateSum, closed: bool, through_gates: bool
) -> Slopes:
    gated = heads.W_V is not None
    if gated:
        value = gates.activation(t) if closed else _weighed(heads, x, t)[0]
        return Slopes(value, None, u * _per_unit(value, t, gates) if through_gates else None)
    value, constant = _weighed(heads, x, t)
    return Slopes(value, gates.activation(t) - value * t if closed else constant, None)


def _weighed(heads: HeadWeights, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_h P_h alpha_h`` and ``sum_h P_h delta_h``. For gated neurons the first has what multiplies u."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    pattern = patterns_on_self(heads, x, t[..., None, :].to(dtype))
    alpha, delta = ((pattern * table.to(dtype)[:, None]).sum(2) for table in (heads.alpha, heads.delta))
    return alpha, delta


def _per_unit(value: Tensor, t: Tensor, gates: GateSum) -> Tensor:
    near = t.abs() < _NEAR
    at_zero = gates.activation(torch.full_like(t, _STEP)) / _STEP
    return torch.where(near, at_zero, value / torch.where(near, 1.0, t))
