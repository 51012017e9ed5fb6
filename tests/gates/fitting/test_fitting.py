"""The optimisers: derivatives, known optima, and a small fit from start to certificate."""

import importlib
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import allheads as ah
from allheads.gates.fitting import __main__ as fitting
from allheads.gates.fitting.families import Family, gated_family, plain_family, symmetric_family
from allheads.gates.fitting.gated_fits import bump_family, bumps, gelu_fits, linear_fits, relu_fits, silu_fits
from allheads.gates.fitting.minimax import Problem, least_squares, minimax
from allheads.gates.fitting.plain_fits import evaluate, fit_plain
from allheads.gates.fitting.ramp import exponential_sum, ramps

T = np.linspace(-6, 6, 101)
FAMILIES = [
    plain_family((2, 1)),
    plain_family((3, 3), offsets=False),
    symmetric_family(4),
    symmetric_family(5, offsets=False),
    gated_family((3, 1), {1: -8.0}),
    bump_family((2, 1)),
]


def random_z(family: Family, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(
        family.multiplicative, rng.uniform(0.5, 2.0, family.tie.shape[1]), rng.normal(size=family.tie.shape[1])
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.tokens))
def test_jacobian_is_the_derivative(family):
    z = random_z(family, 0)
    value, jacobian = family.jacobian(z, T)
    np.testing.assert_allclose(value, family.value(z, T), rtol=1e-13, atol=1e-13)
    for i in range(len(z)):
        step = np.zeros_like(z)
        step[i] = 1e-6
        slope = (family.value(z + step, T) - family.value(z - step, T)) / 2e-6
        np.testing.assert_allclose(jacobian[:, i], slope, rtol=1e-6, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_symmetric_families_obey_the_symmetry_of_gelu(heads, offsets, seed):
    family = symmetric_family(heads, offsets=offsets)
    z = random_z(family, seed)
    np.testing.assert_allclose(family.value(z, T) - family.value(z, -T), T, atol=1e-9)
    assert family.parts(family.theta(z))[0].sum() == pytest.approx(1.0)


@given(st.integers(0, 99))
def test_bumps_are_even(seed):
    family = bump_family((2, 1))
    z = random_z(family, seed)
    np.testing.assert_allclose(family.value(z, T), family.value(z, -T), rtol=1e-12)


def test_free_inverts_theta():
    for family in FAMILIES:
        z = random_z(family, 3)
        np.testing.assert_allclose(family.free(family.theta(z)), z, atol=1e-12)


def test_slots_count_heads_and_tokens():
    assert plain_family((3, 1)).heads + plain_family((3, 1)).total_tokens == 6


def test_minimax_equioscillates():
    """Two symmetric heads: three unknowns on the half line, so four extrema of one size and alternating sign."""
    t = np.linspace(0, 20, 2001)
    problem = Problem(t, evaluate("gelu", t), np.ones_like(t))
    family = symmetric_family(2)
    z = least_squares(family, np.array([0.0, 0.5, 1.6]), problem)
    z, error = minimax(family, z, problem)
    r = problem.residual(family, z) / error
    size = np.r_[0.0, np.abs(r), 0.0]
    peaks = np.flatnonzero((size[1:-1] > 0.999) & (size[1:-1] >= size[:-2]) & (size[1:-1] >= size[2:]))
    assert len(peaks) == 4
    assert all(a * b < 0 for a, b in pairwise(r[peaks]))


def test_exponential_sum_recovers_itself():
    g = np.linspace(0, 10, 200)
    target = 0.5 + 2.0 * np.exp(-0.3 * g) + np.exp(-2.0 * g)
    problem = Problem(g, target, np.ones_like(g))
    z = least_squares(exponential_sum(2), np.array([0, 0, 0, 0.1, 1.0]), problem, iterations=500)
    np.testing.assert_allclose(z, [0.5, 2.0, 1.0, 0.3, 2.0], rtol=1e-4)


def test_ramps_gain_a_digit_per_token():
    g = np.r_[0.0, np.geomspace(0.03, 64.0, 200)]
    errors = []
    for c, a, s in ramps(g, g + 8.0, 0.3 + g, 6):
        gate = 1 / (1 + np.exp(a - s * g[:, None]).sum(1))
        errors.append(float(np.abs((c * gate - g - 8.0) / (0.3 + g)).max()))
    assert len(errors) == 6
    assert all(later < earlier / 6 for earlier, later in pairwise(errors))


def test_plain_fit_is_deterministic():
    first, second = (fit_plain.__wrapped__("gelu", (1, 1), symmetric=True, starts=3)[1] for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("activation", "fit", "known"),
    [
        ("silu", lambda: silu_fits(64.0, 4, 4, depth=12.0), 2e-3),
        ("relu", lambda: relu_fits(64.0, 4, 4), 2e-3),
        ("linear", lambda: linear_fits(64.0, 4, 4), 4e-3),
        ("gelu", lambda: gelu_fits("gelu", 64.0, [(5, (1,))]), 3e-2),
    ],
)
def test_gated_fit_is_certified(activation, fit, known):
    ((family, theta),) = fit()
    row = fitting.certified(family, theta, "test", activation, domain=64.0)
    assert 1e-5 < row.gate_sum.max_error < known
    assert row.amplification < 60


def test_bumps_are_computed_once():
    assert bumps("gelu", (1,)) is bumps("gelu", (1,))


def test_stored_alphas_sum_to_exactly_one():
    family = plain_family((1, 1, 1))
    theta = np.r_[0.1, 0.2, 0.7000000001, np.zeros(6), np.ones(3)]
    gate_sum = fitting.stored(family, theta, "gelu", gated=False, domain=math.inf)
    assert sum(gate_sum.alpha) == 1.0
    assert gate_sum.alpha[:2] == pytest.approx((0.1, 0.2), abs=1e-12)


def test_command_refits_one_activation_and_keeps_the_rest(tmp_path, monkeypatch, capsys):
    job = ("gelu", "symmetric", math.inf, lambda: [fit_plain("gelu", (1,), symmetric=True, starts=2)])
    monkeypatch.setattr(fitting, "plain_jobs", lambda: [job])
    monkeypatch.setattr(fitting, "gated_jobs", lambda: [])
    # Threads, so that the one job above is also theirs.
    monkeypatch.setattr(fitting, "ProcessPoolExecutor", lambda mp_context: ThreadPoolExecutor(1))
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    output = tmp_path / "fits.json"
    monkeypatch.setattr("sys.argv", ["fitting", "--only", "gelu", "--output", str(output)])
    fitting.main()
    rows = json.loads(output.read_text())
    plain_gelu = [row for row in rows if row["activation"] == "gelu" and not row["gated"]]
    assert len(plain_gelu) == 1
    assert plain_gelu[0]["max_error"] == pytest.approx(1.39e-2, rel=5e-3)
    assert any(row["activation"] == "silu" for row in rows)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    monkeypatch.delitem(sys.modules, "allheads.gates.fitting.certificate")
    with pytest.raises(ah.AllHeadsError, match=r"no flint.*allheads\[fits\]"):
        importlib.reload(fitting)
