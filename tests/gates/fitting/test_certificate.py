"""The certificate: tight, rigorous on the tails, and lost when a coefficient moves."""

import math
from dataclasses import replace

import pytest

from allheads.errors import AllHeadsError
from allheads.gates.activations import ACTIVATIONS, generalised_silu
from allheads.gates.approximation import approximate
from allheads.gates.fitting.certificate import certify, sampled_error
from allheads.gates.gates import Gate, GateSum
from allheads.gates.table import fits

SAMPLE = fits()[::9]


@pytest.mark.parametrize(
    "fit", SAMPLE, ids=lambda f: f"{f.gate_sum.activation.name}-{f.family}-{f.gate_sum.bias_tokens}"
)
def test_stored_bound_is_certified_again(fit):
    bound = certify(fit.gate_sum)
    assert bound <= fit.gate_sum.max_error <= 1.002 * bound


@pytest.mark.parametrize("slope", [1.0, 1.702, 3.0])
def test_tight_for_a_known_supremum(slope):
    """t sigma(k t) for GELU: the supremum over a fine grid is good to 1e-6 of itself."""
    gate_sum = GateSum(ACTIVATIONS["gelu"], False, (Gate((0.0,), (slope,)),), (1.0,), (0.0,), 0.0)
    bound = certify(gate_sum)
    reached = sampled_error(gate_sum, 400_001)
    assert reached * (1 - 1e-6) <= bound <= 1.001 * reached


def test_relu_and_silu_differ_by_lambert_w():
    gate_sum = GateSum(ACTIVATIONS["relu"], True, (Gate((0.0,), (1e6,)),), (0.0,), (0.0,), 0.0, domain=2.0)
    assert certify(gate_sum) == pytest.approx(2.0 / 2.3, rel=1e-3)


def moved(gate_sum: GateSum, what: str, factor: float) -> GateSum:
    first = gate_sum.gates[0]
    if what == "delta":
        return replace(gate_sum, delta=(gate_sum.delta[0] * factor, *gate_sum.delta[1:]))
    changed = {"offsets": first.offsets, "slopes": first.slopes}
    changed[what] = (changed[what][0] * factor, *changed[what][1:])
    return replace(gate_sum, gates=(Gate(**changed), *gate_sum.gates[1:]))


@pytest.mark.parametrize("what", ["delta", "offsets", "slopes"])
@pytest.mark.parametrize(("name", "gated"), [("gelu", False), ("silu", True)])
def test_breaks_when_a_coefficient_moves(name, gated, what):
    ours = approximate(name, gated=gated)
    assert certify(moved(ours, what, 1.0)) <= ours.max_error
    assert certify(moved(ours, what, 1 + 1e-4)) > 1.2 * ours.max_error


def test_alphas_must_sum_to_one_exactly():
    ours = approximate("gelu")
    off = replace(ours, alpha=(math.nextafter(ours.alpha[0], 2.0), *ours.alpha[1:]))
    with pytest.raises(AllHeadsError, match="sum to exactly 1"):
        certify(off)


def test_a_head_that_stays_on_to_the_left_is_refused():
    mirrored = GateSum(ACTIVATIONS["gelu"], False, (Gate((0.0,), (-1.7,)),), (1.0,), (0.0,), 0.0)
    with pytest.raises(AllHeadsError, match="infinity"):
        certify(mirrored)


def test_self_only_and_mirrored_heads_have_proved_tails():
    """t/2 + t/2 sigma(k t) - t/2 sigma(-k t) is t sigma(k t) in three heads."""
    gates = (Gate((), ()), Gate((0.0,), (1.702,)), Gate((0.0,), (-1.702,)))
    three = GateSum(ACTIVATIONS["gelu"], False, gates, (0.5, 0.5, -0.5), (0.0, 0.0, 0.0), 0.0)
    one = GateSum(ACTIVATIONS["gelu"], False, (Gate((0.0,), (1.702,)),), (1.0,), (0.0,), 0.0)
    assert certify(three) == pytest.approx(certify(one), rel=1e-3)


def test_flat_token_is_refused():
    flat = GateSum(ACTIVATIONS["gelu"], False, (Gate((0.0,), (0.0,)),), (1.0,), (0.0,), 0.0)
    with pytest.raises(AllHeadsError, match="slope 0"):
        certify(flat)


def test_value_offsets_that_do_not_cancel_are_an_error_at_infinity():
    """t sigma(1.702 t) + 0.1 sigma(40 t) errs by 0.1 for large t, and by a little more before."""
    gates = (Gate((0.0,), (1.702,)), Gate((0.0,), (40.0,)))
    offset = GateSum(ACTIVATIONS["gelu"], False, gates, (1.0, 0.0), (0.0, 0.1), 0.0)
    assert 0.1 <= certify(offset) < 0.13


def test_fast_gelu_is_as_close_to_its_own_formula_as_claimed():
    ours = approximate("gelu_fast")
    assert certify(ours) <= ours.max_error


def test_derived_fits_are_within_their_claims():
    for name in ("quick_gelu", "gelu_fast"):
        ours = approximate(name, gated=True)
        assert certify(ours) <= ours.max_error


def test_unknown_activation():
    gate_sum = GateSum(generalised_silu(2.0, 3.0), False, (Gate((0.0,), (3.0,)),), (6.0,), (0.0,), 0.0)
    with pytest.raises(AllHeadsError, match="derived from"):
        certify(gate_sum)
