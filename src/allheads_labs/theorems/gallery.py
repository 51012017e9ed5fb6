"""Every theorem and its random cases: the table that ``allheads theorems`` prints."""

from __future__ import annotations

from functools import partial

from allheads.gates import approximate, generalised_silu
from allheads_labs.theorems import cases, cases_gated, cases_masks
from allheads_labs.theorems.gated import cancelling_pair
from allheads_labs.theorems.theorem import Theorem

HALF_SILU = approximate(generalised_silu(0.5, 2.0))
SILU, GELU = approximate("silu"), approximate("gelu")
THEOREMS = (
    Theorem("neuron, SiLU: one head", True, partial(cases.neurons, SILU)),
    Theorem("neuron, 0.5 SiLU(2 t): one head", True, partial(cases.neurons, HALF_SILU)),
    Theorem("neuron, ReLU within a tolerance", False, partial(cases.neurons, approximate("relu"))),
    Theorem("neuron, GELU (erf) within a tolerance", False, partial(cases.neurons, GELU)),
    Theorem("neuron, GELU (tanh) within a tolerance", False, partial(cases.neurons, approximate("gelu_tanh"))),
    Theorem("linear map: heads that see themselves", True, cases.linear),
    Theorem("activation in place, SiLU", True, partial(cases.in_place, SILU)),
    Theorem("activation in place, GELU (erf)", False, partial(cases.in_place, GELU)),
    Theorem("MLP in one layer", True, cases.one_layer),
    Theorem("MLP in three layers", True, cases.three_layers),
    Theorem("mask in weights, causal", True, cases_masks.causal_mask),
    Theorem("mask in weights, self and bias tokens", True, cases_masks.neuron_mask),
    Theorem("mask in weights, sliding window", True, cases_masks.window_mask),
    Theorem("mask in weights, arbitrary", True, cases_masks.arbitrary_mask),
    Theorem("ordinary heads ignore bias tokens", True, cases_masks.beside_bias),
    Theorem("whole transformer without norms", True, cases.transformer),
    Theorem("product of gates: one head", True, cases_gated.product),
    Theorem("SwiGLU, ramp: two heads", False, partial(cases_gated.gated, approximate("silu", gated=True))),
    Theorem("SwiGLU, cancelling pair, e = 1e-4", False, partial(cases_gated.gated, cancelling_pair(1e-4, 64.0))),
    Theorem("one head is no gated unit: off by", False, cases_gated.one_head, least=True),
    Theorem("no finite sum is exact: off by", False, cases_gated.finite_sum, least=True),
    Theorem("the domain behind a norm, share reached", False, cases_gated.behind_norm),
)
