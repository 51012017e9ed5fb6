"""Three evaluations of the same heads agree, to bounds that follow from the error analysis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import allheads as ah
from allheads.heads.bank import HeadBank
from allheads.heads.evaluate import attention, closed, patterns_on_self, slots
from allheads.heads.hooks import HeadHooks
from allheads.heads.rounding import closed_rounding, heads_rounding
from allheads.heads.weights import HeadWeights


def _exact(bank: HeadBank) -> HeadWeights:
    return bank.weights(torch.float64).to(torch.float64)


def _certified(bank: HeadBank, x: torch.Tensor) -> torch.Tensor:
    """sum_n max_error scale(t_n) |u_n| |W_out[n]|"""
    value = x @ bank.W_in.double() + bank.b_in.double()
    if bank.gated:
        size = bank.gates.bound(x @ bank.W_gate.double() + bank.b_gate.double()) * value.abs()
    else:
        size = bank.gates.bound(value)
    return size @ bank.W_out.double().abs()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_three_agree(kind, bank, stream, dtype):
    made, x = bank(*kind, dtype=dtype), stream(dtype)
    heads, x64 = _exact(made), x.double()
    count = x.shape[1] + max(made.gates.bias_tokens)
    by_slots = heads_rounding(heads, x64, dtype, dtype)
    by_attention = heads_rounding(heads, x64, dtype, dtype, slots=count)
    by_closed = closed_rounding(heads, x64, dtype, made.gates.activation) + _certified(made, x64)
    results = {}
    for name in ("slots", "attention", "closed"):
        made.evaluation = name
        with torch.no_grad():
            results[name] = made(x).double()
    assert ((results["slots"] - results["attention"]).abs() <= by_slots + by_attention).all()
    assert ((results["slots"] - results["closed"]).abs() <= by_slots + by_closed).all()
    # The bounds say something: a thousandth of the output in float32, and far less in float64. Steps made of ReLU's
    # steep gates are bounded as if the stream could sit on the step everywhere: only float64 says something there.
    steep = max(abs(k) for gate in made.gates.gates for k in gate.slopes) > 1e3
    shares = {torch.float32: float("inf") if steep else 1e-1, torch.float64: 1e-5 if steep else 1e-9}
    assert by_slots.max() < shares[dtype] * results["slots"].abs().max()


@pytest.mark.parametrize("pattern_dtype", [torch.float64, torch.float32])
def test_rounding_is_what_float32_adds(kind, bank, stream, pattern_dtype):
    made, x = bank(*kind, dtype=torch.float32), stream(torch.float32)
    heads = _exact(made)
    exact = slots(heads, x.double(), HeadHooks(), torch.float64)
    made.pattern_dtype = pattern_dtype
    with torch.no_grad():
        error = (made(x).double() - exact).abs()
    bound = heads_rounding(heads, x.double(), torch.float32, pattern_dtype)
    assert (error <= bound).all()
    assert error.max() > 0
    # "Exact" shrinks by eight orders of magnitude from float32 to float64.
    assert heads_rounding(heads, x.double(), torch.float64, torch.float64).max() < 1e-6 * bound.max()


def test_a_plain_silu_mlp_is_exact_in_float64(bank, stream):
    made, x = bank("silu", False, d_model=64, d_mlp=256), stream(shape=(2, 9, 64))
    expected = torch.nn.functional.silu(x @ made.W_in + made.b_in) @ made.W_out + made.b_out
    for name in ("attention", "slots", "closed"):
        made.evaluation = name
        assert (made(x) - expected).abs().max() <= 1e-13 * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    pos=st.integers(1, 5),
    d_model=st.integers(1, 7),
    d_mlp=st.integers(1, 9),
    gated=st.booleans(),
    biases=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_every_shape(batch, pos, d_model, d_mlp, gated, biases, seed):
    g = torch.Generator().manual_seed(seed)
    W_in, W_gate = torch.randn(2, d_model, d_mlp, generator=g, dtype=torch.float64)
    W_out = torch.randn(d_mlp, d_model, generator=g, dtype=torch.float64)
    extra = {"W_gate": W_gate} if gated else {}
    if biases:
        extra |= {"b_in": torch.randn(d_mlp, generator=g, dtype=torch.float64)}
        extra |= {"b_out": torch.randn(d_model, generator=g, dtype=torch.float64)}
    made = HeadBank({"W_in": W_in, "W_out": W_out, **extra}, ah.gates.approximate("silu", gated=gated))
    x = torch.randn(batch, pos, d_model, generator=g, dtype=torch.float64)
    hooks, weights = HeadHooks(), _exact(made)
    by_slots = slots(weights, x, hooks, torch.float64)
    assert by_slots.shape == x.shape
    rounding = 2 * heads_rounding(weights, x, torch.float64, torch.float64, slots=pos + 64)
    assert ((attention(weights, x, hooks, torch.float64) - by_slots).abs() <= rounding).all()
    by_closed = closed(weights, x, hooks, made.gates.activation)
    certificate = made.gates.max_error * (0.3 + 100) * (1 + (x @ W_in).abs().max()) * W_out.abs().sum()
    assert (by_closed - by_slots).abs().max() <= certificate + 1e-10


def test_half_precision_streams_have_float32_patterns(bank, stream):
    made, x = bank("silu", True, dtype=torch.bfloat16), stream(torch.bfloat16)
    seen = []
    made.hooks.hook_pattern.add_hook(lambda pattern, hook: seen.append(pattern.dtype))
    with torch.no_grad():
        assert made(x).dtype == torch.bfloat16
    assert seen == [torch.float32]


def test_gradients_flow_and_agree(kind, bank, stream):
    made, x = bank(*kind), stream()
    gradients = []
    for name in ("slots", "attention", "closed"):
        made.evaluation = name
        probe = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(made(probe).square().sum(), probe)[0])
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-8)
    # ReLU's kink is rounded off by 1/k: its derivative is met except very close to zero.
    assert torch.allclose(gradients[0], gradients[2], rtol=1e-2, atol=1e-2 * float(gradients[2].abs().max()))


def test_unknown_evaluations_are_refused(bank):
    with pytest.raises(ah.AllHeadsError, match="an evaluation out of"):
        bank("silu", False).evaluation = "guess"


def test_the_bound_survives_hard_input(bank):
    """Rows from tiny to huge, a slope of 3e5, patterns of exactly 0 and 1: finite, and never exceeded."""
    made = bank("relu", False, dtype=torch.float32, d_model=64, d_mlp=32)
    x = torch.randn(1, 400, 64, generator=torch.Generator().manual_seed(0))
    x = x * torch.logspace(-4, 3, 400)[:, None]
    heads = _exact(made)
    exact = slots(heads, x.double(), HeadHooks(), torch.float64)
    bound = heads_rounding(heads, x.double(), torch.float32, torch.float32)
    with torch.no_grad():
        assert ((made(x).double() - exact).abs() <= bound).all()
    wide, x = bank("relu", False, d_model=200), torch.ones(1, 1, 200)
    with pytest.raises(ah.AllHeadsError, match="short enough"):
        heads_rounding(_exact(wide), x.double(), torch.bfloat16, torch.float32)


def test_the_bound_holds_for_a_self_key_at_the_edge():
    """A large score on self with a bias token just below it: the softmax must not lose what lies between."""
    made = HeadBank({"W_in": torch.eye(1), "W_out": torch.eye(1)}, ah.gates.approximate("silu"), "slots")
    with made.edit() as heads:
        heads.W_K[:] = 2.0**17
        heads.bias_keys[:] = 2.0**17 - 5.0
    x = torch.ones(1, 1, 1)
    weights = _exact(made)
    exact = slots(weights, x.double(), HeadHooks(), torch.float64)
    bound = heads_rounding(weights, x.double(), torch.float32, torch.float32)
    assert (made(x).double() - exact).abs() <= bound


def test_a_self_key_counts_with_and_without_a_gradient(kind, bank, stream):
    made, x = bank(*kind), stream()
    with made.edit() as heads:
        # A share of the bias tokens' keys: those of a sharp gate are large.
        heads.W_K[:] = (
            0.1
            * heads.bias_keys.abs().max()
            * torch.randn(heads.W_K.shape, generator=torch.Generator().manual_seed(1)).to(heads.W_K)
        )
    plain = bank(*kind)
    with torch.no_grad():
        fast = made(x)
        assert (fast - plain(x)).abs().max() > 1e-3
    kept = made(x).detach()
    made.evaluation = "attention"
    literal = made(x).detach()
    size = float(literal.abs().max())
    assert (fast - kept).abs().max() <= 1e-9 * size and (fast - literal).abs().max() <= 1e-9 * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_softmax_without_a_gradient_is_the_one_with_it(kind, bank, dtype):
    """Scores of any size: where an exponential overflows, the weight is the 0 that the softmax gives."""
    heads, eps = bank(*kind, dtype=dtype).weights(), torch.finfo(dtype).eps
    q = torch.cat([torch.linspace(-30, 30, 301), torch.tensor([-1e6, -1e3, -100, 100, 1e3, 1e6])]).to(dtype)
    q = q.view(1, -1, 1, 1).expand(-1, -1, 1, heads.neurons)
    x = torch.zeros(1, q.shape[1], heads.W_Q.shape[-1], dtype=dtype)
    kept = patterns_on_self(heads, x, q)
    with torch.no_grad():
        fast = patterns_on_self(heads, x, q)
    scores = max(float(heads.bias_offsets.nan_to_num(neginf=0).abs().max()), 1.0)
    assert fast.isfinite().all() and (fast - kept).abs().max() <= 64 * eps
    # Relative, too, where the weight is not below what the dtype holds.
    seen = kept > torch.finfo(dtype).tiny
    assert ((fast - kept).abs() / kept)[seen].max() <= 200 * eps * scores
