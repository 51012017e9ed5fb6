"""Every claim of this room, put to the test: the table that ``allheads theorems`` prints."""

from __future__ import annotations

from functools import partial

from allheads.gates.activations import generalised_silu
from allheads.gates.approximation import approximate
from allheads_labs.theorems import cases_gated, cases_masks, cases_mlp
from allheads_labs.theorems.claims import Claim
from allheads_labs.theorems.gated import cancelling_pair

CLAIMS = (
    Claim("neuron, SiLU: one head", True, partial(cases_mlp.neurons, approximate("silu"))),
    Claim("neuron, 0.5 SiLU(2 t): one head", True, partial(cases_mlp.neurons, approximate(generalised_silu(0.5, 2.0)))),
    Claim("neuron, ReLU within a tolerance", False, partial(cases_mlp.neurons, approximate("relu"))),
    Claim("neuron, GELU (erf) within a tolerance", False, partial(cases_mlp.neurons, approximate("gelu"))),
    Claim("neuron, GELU (tanh) within a tolerance", False, partial(cases_mlp.neurons, approximate("gelu_tanh"))),
    Claim("linear map: heads that see themselves", True, cases_mlp.linear),
    Claim("activation in place, SiLU", True, partial(cases_mlp.in_place, approximate("silu"))),
    Claim("activation in place, GELU (erf)", False, partial(cases_mlp.in_place, approximate("gelu"))),
    Claim("MLP in one layer", True, cases_mlp.one_layer),
    Claim("MLP in three layers", True, cases_mlp.three_layers),
    Claim("mask in weights, causal", True, cases_masks.causal_mask),
    Claim("mask in weights, self and bias tokens", True, cases_masks.neuron_mask),
    Claim("mask in weights, sliding window", True, cases_masks.window_mask),
    Claim("mask in weights, arbitrary", True, cases_masks.arbitrary_mask),
    Claim("ordinary heads ignore bias tokens", True, cases_masks.beside_bias),
    Claim("whole transformer without norms", True, cases_mlp.transformer),
    Claim("product of gates: one head", True, cases_gated.product),
    Claim("SwiGLU, ramp: two heads", False, partial(cases_gated.gated, approximate("silu", gated=True))),
    Claim("SwiGLU, cancelling pair, e = 1e-4", False, partial(cases_gated.gated, cancelling_pair(1e-4, 64.0))),
    Claim("one head is no gated unit: off by", False, cases_gated.one_head, least=True),
    Claim("no finite sum is exact: off by", False, cases_gated.finite_sum, least=True),
    Claim("the domain behind a norm, share reached", False, cases_gated.behind_norm),
)
