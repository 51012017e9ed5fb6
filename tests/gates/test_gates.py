"""Gates and gate sums: the identities that everything else rests on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allheads.gates.activations import ACTIVATIONS, generalised_silu
from allheads.gates.approximation import approximate
from allheads.gates.gates import Gate, GateSum

T = torch.linspace(-30, 30, 1201, dtype=torch.float64)
tokens = st.lists(st.tuples(st.floats(-5, 5), st.floats(-4, 4)), min_size=0, max_size=3)


def gate_of(pairs) -> Gate:
    return Gate(tuple(a for a, _ in pairs), tuple(k for _, k in pairs))


@given(tokens)
def test_pattern_is_one_over_one_plus_the_bias_tokens(pairs):
    expected = 1 / (1 + sum((torch.exp(a - k * T) for a, k in pairs), start=torch.zeros_like(T)))
    torch.testing.assert_close(gate_of(pairs)(T), expected, rtol=1e-12, atol=0)


@given(tokens, tokens)
def test_product_of_gates_is_a_gate(left, right):
    one, two = gate_of(left), gate_of(right)
    product = one * two
    assert product.bias_tokens == (one.bias_tokens + 1) * (two.bias_tokens + 1) - 1
    torch.testing.assert_close(product(T), one(T) * two(T), rtol=1e-11, atol=1e-300)


@given(tokens, st.floats(-3, 3))
def test_stretched_gate_reads_a_multiple(pairs, factor):
    gate = gate_of(pairs)
    torch.testing.assert_close(gate.stretched(factor)(T), gate(factor * T), rtol=1e-11, atol=1e-300)


def test_scores_put_the_token_itself_first():
    scores = Gate((2.0, 3.0), (1.0, -1.0)).scores(torch.tensor([4.0]))
    torch.testing.assert_close(scores, torch.tensor([[0.0, -2.0, 7.0]]))


def test_no_bias_token_means_all_attention_on_self():
    assert torch.equal(Gate((), ())(T), torch.ones_like(T))


def test_gate_survives_extreme_arguments():
    gate = Gate((0.0,), (1e9,))
    assert gate(torch.tensor([-1e25, 1e25])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"activation": "silu", "gated": True}])
def test_differentiable(options):
    t = torch.tensor([-7.0, -1.3, 0.0, 0.4, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(approximate(**options), t)


def test_derivative_is_close_to_that_of_the_activation():
    t = torch.linspace(-20, 20, 2001, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(approximate("gelu")(t).sum(), t)
    (exact,) = torch.autograd.grad(ACTIVATIONS["gelu"](t).sum(), t)
    difference = float((ours - exact).abs().max())
    assert 0 < difference < 3e-5


def test_scale_and_bound():
    t = torch.tensor([-100.0, -2.0, 3.0], dtype=torch.float64)
    plain = GateSum(ACTIVATIONS["gelu"], False, (), (), (), 0.5)
    assert plain.scale(t).tolist() == [1.0, 1.0, 1.0]
    gated = GateSum(ACTIVATIONS["relu"], True, (), (), (), 0.5, domain=10.0)
    assert gated.scale(t).tolist() == [0.3, 0.3, 3.3]
    assert gated.bound(t).tolist() == [math.inf, 0.15, 1.65]
    squared = GateSum(ACTIVATIONS["relu2"], False, (), (), (), 0.5, domain=10.0)
    assert squared.scale(t[1:]).tolist() == pytest.approx([0.6, 9.9])


def test_counts():
    gate_sum = GateSum(ACTIVATIONS["linear"], True, (Gate((), ()), Gate((0.0,), (1.0,))), (0.0, 0.0), (1.0, 2.0), 1.0)
    assert (gate_sum.heads, gate_sum.bias_tokens) == (2, (0, 1))
    torch.testing.assert_close(gate_sum(T), 1 + 2 * torch.sigmoid(T))


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_generalised_silu_is_one_head_exactly(outer, inner):
    f = generalised_silu(outer, inner)
    ours = approximate(f)
    assert (ours.heads, ours.bias_tokens, ours.max_error, ours.domain) == (1, (1,), 0.0, math.inf)
    torch.testing.assert_close(ours(T), f(T), rtol=1e-14, atol=1e-15)
