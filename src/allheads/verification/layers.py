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
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.heads.bank import HeadBank
from allheads.heads.evaluate import slots
from allheads.heads.hooks import HeadHooks
from allheads.heads.rounding import closed_rounding, heads_rounding, project
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


def prove_layer(
    mlp: MLP, bank: HeadBank, x: Float[Tensor, "row d_model"], domain: Domain, accumulated: float
) -> LayerProof:
    """Measure one layer on the source's own inputs ``x``; it passes if no entry exceeds its bound.

    Certificate and rounding are those of the heads that the source's weights make, not of the heads in the bank: a
    bank that was tampered with does not get to widen its own bound. The layer fails as well if the bank collapses to
    another activation than the source's, see `closed`.
    """
    figures, within, violations = [], bank.gates.activation == mlp.computed, 0
    with torch.no_grad():
        reference = mlp.reference(torch.float64)
        expected = mlp.heads(bank.gates).weights(torch.float64).to(torch.float64)
        heads = bank.weights(torch.float64).to(torch.float64)
        for chunk in x.split(_ROWS) if len(x) else []:
            rows = chunk.double()[None]
            error = (slots(heads, rows, HeadHooks(), torch.float64) - reference(rows)).abs()
            exact = project(expected, rows, torch.float64)
            certified = bank.gates.bound(exact.t[..., 0, :]) * (exact.u[..., 0, :].abs() if mlp.gated else 1.0)
            certified = allowed = certified @ expected.W_O[0].abs()
            if not bool((error <= certified).all()):
                allowed = allowed + heads_rounding(expected, rows, torch.float64, torch.float64, projections=exact)
                allowed = allowed + closed_rounding(expected, rows, torch.float64, mlp.computed, projections=exact)
            ratio = torch.where(error == 0, 0.0, error / allowed)
            figures.append(torch.stack([error.max(), certified.max(), ratio.max()]))
            within = within and bool((error <= allowed).all())
            violations += int((exact.t.abs() > bank.gates.domain).sum())
    # A NaN is the largest of all.
    largest, bound, tightness = torch.stack(figures).amax(0).tolist() if figures else (0.0, 0.0, 0.0)
    return LayerProof(
        location=mlp.location.stem,
        layer=mlp.location.layer,
        rows=len(x),
        error=largest,
        bound=bound,
        tightness=tightness,
        accumulated=accumulated,
        domain=bank.gates.domain,
        by_theorem=domain.by_theorem,
        violations=violations,
        passed=within and violations == 0 and math.isfinite(accumulated),
    )
