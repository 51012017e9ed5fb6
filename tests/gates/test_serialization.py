"""Gate sums come back from JSON to the last bit."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import allheads as ah
from allheads.gates.activations import ACTIVATIONS, Activation, generalised_silu
from allheads.gates.serialization import from_json, to_json
from allheads.gates.table import fits

_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_FACTORS = st.floats(1e-3, 1e3)


@st.composite
def gate_sums(draw: st.DrawFn) -> ah.gates.GateSum:
    activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
    for inner, outer in draw(st.lists(st.tuples(_FACTORS, _FACTORS), max_size=2)):
        activation = activation.stretched(inner, outer)
    heads = draw(st.lists(st.lists(st.tuples(_FLOATS, _FLOATS), max_size=4), min_size=1, max_size=4))
    numbers = st.lists(_FLOATS, min_size=len(heads), max_size=len(heads)).map(tuple)
    return ah.gates.GateSum(
        activation,
        draw(st.booleans()),
        tuple(ah.gates.Gate(tuple(a for a, _ in head), tuple(k for _, k in head)) for head in heads),
        draw(numbers),
        draw(numbers),
        draw(_FLOATS),
        draw(st.one_of(_FLOATS, st.just(math.inf))),
    )


def _through_json(gates: ah.gates.GateSum) -> ah.gates.GateSum:
    return from_json(json.loads(json.dumps(to_json(gates), allow_nan=False)))


@given(gate_sums())
def test_round_trip(gates):
    assert _through_json(gates) == gates
    assert repr(_through_json(gates)) == repr(gates)  # tells 0.0 from -0.0


def test_every_fit_of_the_table_and_its_stretched_forms():
    for fit in fits():
        assert _through_json(fit.gate_sum) == fit.gate_sum
        if not fit.gate_sum.activation.squared:
            stretched = fit.gate_sum.stretched(0.3, 0.7)
            assert _through_json(stretched) == stretched


def test_a_generalised_silu_is_a_silu_with_factors():
    import torch

    gates = ah.gates.approximate(generalised_silu(0.5, -2.0))
    again = _through_json(gates)
    t = torch.linspace(-9.0, 9.0, 101, dtype=torch.float64)
    assert torch.equal(again.activation(t), gates.activation(t))
    assert (again.gates, again.alpha, again.delta) == (gates.gates, gates.alpha, gates.delta)


def test_an_activation_without_a_name_is_refused():
    mine = Activation("silu", "not that one", "mine", lambda t: t)
    with pytest.raises(ah.AllHeadsError, match="Only what can be named can be saved"):
        to_json(ah.gates.GateSum(mine, False, (ah.gates.Gate((0.0,), (1.0,)),), (1.0,), (0.0,), 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "mish"}, "a supported activation, got 'mish'"),
        ({"activation": 3}, "TypeError"),
        ({"factors": [[1.0]]}, "ValueError"),
        ({"factors": 2.0}, "TypeError"),
        ({"heads": []}, "one slope for every offset"),
        ({"heads": [{"alpha": 1.0, "delta": 0.0, "offsets": [0.0, 1.0], "slopes": [1.0]}]}, "one slope"),
        ({"heads": [{"alpha": 1.0}]}, "KeyError"),
        ({"max_error": "small"}, "ValueError"),
        ({"domain": None}, "TypeError"),
    ],
)
def test_what_is_no_gate_sum_is_refused(change, message):
    with pytest.raises(ah.AllHeadsError, match=message):
        from_json(to_json(ah.gates.approximate("silu")) | change)
