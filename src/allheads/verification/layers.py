r"""The MLP of one layer against its heads, on the same input, in float64.

Both sides are computed in float64 from the weights as they are stored: the source's own module, and the bank's heads
through `slots`. Then

    |heads(x) - mlp(x)|  <=  sum_n max_error * scale(t_n) * |u_n| |W_out[n]|  +  rounding,

entry by entry: the first term is the certificate of the gates carried through the neuron's output weights (u = 1
for a plain neuron), the second the a-priori bound of `allheads.heads.rounding`. In float64 that is far below the
first, and takes longer than everything else here: it is only asked for where the certificate alone does not hold,
as for an exact activation, whose certificate is zero. A layer that is anything else than its source does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.gates.gates import GateSum
from allheads.heads.bank import HeadBank
from allheads.heads.evaluate import slots
from allheads.heads.hooks import HeadHooks
from allheads.heads.rounding import closed_rounding, heads_rounding, project
from allheads.heads.weights import HeadWeights
from allheads.models.mlps import MLP
from allheads.twin.domain import Domain

#: Rows of input worked on at a time.
_ROWS = 128


@dataclass(frozen=True)
class LayerProof:
    """What was measured in one MLP or expert, on ``rows`` inputs; none, if nothing was routed to it.

    ``location`` is its label's beginning, `allheads.models.locations`. Errors are largest absolute differences over
    positions and coordinates.
    """

    location: str
    layer: int
    rows: int
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
class _Sides:
    """Both sides of a layer in float64, and the heads that its weights make, beside those found in the bank."""

    mlp: MLP
    reference: Callable[[Tensor], Tensor]
    expected: HeadWeights
    found: HeadWeights
    gates: GateSum


@dataclass(frozen=True)
class _Measured:
    error: float
    bound: float
    tightness: float
    within: bool
    violations: int


def prove_layer(
    mlp: MLP, bank: HeadBank, x: Float[Tensor, "row d_model"], domain: Domain, accumulated: float
) -> LayerProof:
    """Measure one layer on the source's own inputs ``x``; it passes if no entry exceeds its bound.

    It fails as well if the bank collapses to another activation than the source's, see `closed`.
    """
    with torch.no_grad():
        expected = mlp.heads(bank.gates).weights(torch.float64).to(torch.float64)
        found = bank.weights(torch.float64).to(torch.float64)
        sides = _Sides(mlp, mlp.reference(torch.float64), expected, found, bank.gates)
        chunks = [_measure(sides, rows.double()[None]) for rows in x.split(_ROWS)] if len(x) else []
    violations = sum(c.violations for c in chunks)
    within = all(c.within for c in chunks) and bank.gates.activation == mlp.computed
    return LayerProof(
        location=mlp.location.stem,
        layer=mlp.location.layer,
        rows=len(x),
        error=max((c.error for c in chunks), key=_worst, default=0.0),
        bound=max((c.bound for c in chunks), default=0.0),
        tightness=max((c.tightness for c in chunks), key=_worst, default=0.0),
        accumulated=accumulated,
        domain=bank.gates.domain,
        by_theorem=domain.by_theorem,
        violations=violations,
        passed=within and violations == 0 and math.isfinite(accumulated),
    )


def _worst(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _measure(sides: _Sides, x: Float[Tensor, "1 row d_model"]) -> _Measured:
    """Phases: both sides, the certificate, the rounding if it matters, the comparison.

    Certificate and rounding are those of the heads that the source's weights make, not of the heads found: a
    bank that was tampered with does not get to widen its own bound.
    """
    expected = sides.expected
    error = (slots(sides.found, x, HeadHooks(), torch.float64) - sides.reference(x)).abs()
    exact = project(expected, x, torch.float64)
    size = sides.gates.bound(exact.t[..., 0, :])
    if sides.mlp.gated:
        size = size * exact.u[..., 0, :].abs()
    certified = size @ expected.W_O[0].abs()
    allowed = certified
    if not bool((error <= certified).all()):
        allowed = allowed + heads_rounding(expected, x, torch.float64, torch.float64, projections=exact)
        allowed = allowed + closed_rounding(expected, x, torch.float64, sides.mlp.computed, projections=exact)
    ratio = torch.where(error == 0, 0.0, error / allowed)
    return _Measured(
        error=float(error.max()),
        bound=float(certified.max()),
        tightness=float(ratio.max()),
        within=bool((error <= allowed).all()),
        violations=int((exact.t.abs() > sides.gates.domain).sum()),
    )
