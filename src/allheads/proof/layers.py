r"""The MLP of one layer against its heads, on the same input, in float64.

Both sides are computed in float64 from the weights as they are stored: the source's own module, and the bank's heads
through `slots`. Then

    |heads(x) - mlp(x)|  <=  sum_n max_error * scale(t_n) * |u_n| |W_out[n]|  +  rounding,

entry by entry: the first term is the certificate of the gates carried through the neuron's output weights (u = 1
for a plain neuron), the second the a-priori bound of `allheads.banks.rounding`, about 1e-10. A layer that is
anything else than its source does not fit under it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.banks.bank import HeadBank
from allheads.banks.evaluate import slots
from allheads.banks.hooks import HeadHooks
from allheads.banks.rounding import closed_rounding, heads_rounding, project
from allheads.models.mlps import MLP
from allheads.twin.domain import Domain

#: Rows of input worked on at a time.
_ROWS = 128


@dataclass(frozen=True)
class LayerProof:
    """What was measured in one layer. Errors are largest absolute differences over positions and coordinates."""

    layer: int
    error: float
    bound: float
    tightness: float
    accumulated: float
    domain: float
    by_theorem: bool
    violations: int
    passed: bool

    def to_dict(self) -> dict[str, float | int | bool | None]:
        """Plain values; infinities and NaN become None, which JSON can hold."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class _Measured:
    error: float
    bound: float
    tightness: float
    violations: int


def prove_layer(
    mlp: MLP, bank: HeadBank, x: Float[Tensor, "row d_model"], domain: Domain, accumulated: float
) -> LayerProof:
    """Measure one layer on the source's own inputs ``x``; it passes if no entry exceeds its bound."""
    with torch.no_grad():
        chunks = [_measure(mlp, bank, rows.double()[None]) for rows in x.split(_ROWS)]
    tightness = max((c.tightness for c in chunks), key=_worst)
    violations = sum(c.violations for c in chunks)
    return LayerProof(
        layer=mlp.layer,
        error=max((c.error for c in chunks), key=_worst),
        bound=max(c.bound for c in chunks),
        tightness=tightness,
        accumulated=accumulated,
        domain=bank.gates.domain,
        by_theorem=domain.by_theorem,
        violations=violations,
        passed=tightness <= 1.0 and violations == 0 and math.isfinite(accumulated),
    )


def _worst(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _measure(mlp: MLP, bank: HeadBank, x: Float[Tensor, "1 row d_model"]) -> _Measured:
    """Phases: both sides, the certificate, the rounding, the comparison."""
    heads = bank.weights(torch.float64).to(torch.float64)
    error = (slots(heads, x, HeadHooks(), torch.float64) - mlp.reference(x)).abs()
    read = {name: tensor.detach().double() for name, tensor in mlp.tensors().items() if tensor is not None}
    t = x @ read["W_in"] + read.get("b_in", x.new_zeros(()))
    weight = read["W_out"].abs()
    if mlp.gated:
        g = x @ read["W_gate"] + read.get("b_gate", x.new_zeros(()))
        certified, read_by_gate = (bank.gates.bound(g) * t.abs()) @ weight, g
    else:
        certified, read_by_gate = bank.gates.bound(t) @ weight, t
    read_by_heads = project(heads, x, torch.float64)
    rounding = heads_rounding(heads, x, torch.float64, torch.float64, projections=read_by_heads)
    rounding = rounding + closed_rounding(heads, x, torch.float64, mlp.activation, projections=read_by_heads)
    tightness = (error / (certified + rounding)).max()
    outside = (read_by_gate.abs() > bank.gates.domain).sum()
    return _Measured(float(error.max()), float(certified.max()), float(tightness), int(outside))
