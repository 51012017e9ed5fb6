r"""The MLP of one layer against its heads, on the same input, in float64.

Both sides are computed in float64 from the weights as they are stored: the source's own module, and the bank's heads
through `slots`. Then

    |heads(x) - mlp(x)|  <=  sum_n max_error * scale(t_n) * |u_n| |W_out[n]|  +  rounding,

entry by entry: the first term is the certificate of the gates carried through the neuron's output weights (u = 1
for a plain neuron), the second the a-priori bound of `allheads.heads.rounding`. In float64 that is far below the
first, and takes longer than everything else here: it is only asked for where the certificate alone does not hold,
as for an exact activation, whose certificate is zero. A layer that is anything else than its source does not fit.
The certificate is looked up by the coefficients of the gates, `allheads.gates.approximation.certificate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.gates.approximation import certificate
from allheads.heads.evaluate import slots
from allheads.heads.hooks import HeadHooks
from allheads.heads.rounding import closed_rounding, heads_rounding, project
from allheads.models.mlps import MLP
from allheads.twin.domain import Domain
from allheads.twin.twin import Layer
from allheads.verification.banks import changed_heads

#: Rows of input worked on at a time.
_ROWS = 128


@dataclass(frozen=True)
class LayerProof:
    """What was measured in one MLP or expert, on ``rows`` inputs; none, if nothing was routed to it.

    ``location`` is its label's beginning, `allheads.models.locations`. Errors are largest absolute differences over
    positions and coordinates. ``certified`` and ``domain`` are the certificate's; ``never_open`` counts neurons whose
    preactivation was positive nowhere; ``faults`` is what is wrong beside the figures, in words.
    """

    location: str
    layer: int
    rows: int
    error: float
    bound: float
    certified: float
    tightness: float
    accumulated: float
    domain: float
    by_theorem: bool
    violations: int
    never_open: int
    edited: bool
    faults: tuple[str, ...]
    passed: bool


def prove_layer(
    mlp: MLP, layer: Layer, x: Float[Tensor, "row d_model"], domain: Domain, accumulated: float
) -> LayerProof:
    """Measure one layer on the source's own inputs ``x``; it passes if no entry exceeds its bound.

    Certificate and rounding are those of the heads that the source's weights make, not of the heads in the bank: a
    bank that was tampered with does not get to widen its own bound. Without a certificate there is no bound, and the
    layer fails; it fails as well if the bank collapses to another activation than the source's, see `closed`.
    """
    bank, figures, violations = layer.bank, [], 0
    gates = certificate(mlp.computed, bank.gates)
    within = gates is not None and bank.gates.activation == mlp.computed
    opened = torch.zeros(bank.d_mlp, dtype=torch.bool, device=x.device)
    with torch.no_grad():
        reference = mlp.reference(torch.float64)
        expected = mlp.heads(bank.gates).weights(torch.float64).to(torch.float64)
        heads = expected if not changed_heads(mlp, bank) else bank.weights(torch.float64).to(torch.float64)
        for chunk in x.split(_ROWS) if len(x) else []:
            rows = chunk.double()[None]
            error = (slots(heads, rows, HeadHooks(), torch.float64) - reference(rows)).abs()
            exact = project(expected, rows, torch.float64)
            t = exact.t[0, :, 0]
            scalar = torch.full_like(t, torch.inf) if gates is None else gates.bound(t)
            certified = allowed = (scalar * (exact.u[0, :, 0].abs() if mlp.gated else 1.0) @ expected.W_O[0].abs())[
                None
            ]
            if not bool((error <= certified).all()):
                allowed = allowed + heads_rounding(expected, rows, torch.float64, torch.float64, projections=exact)
                allowed = allowed + closed_rounding(expected, rows, torch.float64, mlp.computed, projections=exact)
            ratio = torch.where(error == 0, 0.0, error / allowed)
            figures.append(torch.stack([error.max(), certified.max(), ratio.max()]))
            within = within and bool((error <= allowed).all())
            violations += 0 if gates is None else int((t.abs() > gates.domain).sum())
            opened |= (t > 0).any(0)
    # A NaN is the largest of all.
    largest, bound, tightness = torch.stack(figures).amax(0).tolist() if figures else (0.0, 0.0, 0.0)
    end = 0.0 if gates is None else gates.domain
    return LayerProof(
        location=mlp.location.stem,
        layer=mlp.location.layer,
        rows=len(x),
        error=largest,
        bound=bound,
        certified=math.inf if gates is None else gates.max_error,
        tightness=tightness,
        accumulated=accumulated,
        domain=end,
        by_theorem=domain.by_theorem and domain.limit <= end * (1 + 1e-9),
        violations=violations,
        never_open=int((~opened).sum()),
        edited=bank.edited is not None,
        faults=(),
        passed=within and violations == 0 and math.isfinite(accumulated),
    )
