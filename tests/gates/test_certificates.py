"""What a gate sum claims holds for the floats that it stores, and is looked up, not believed."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction

import mpmath
import pytest

from allheads.gates.activations import activation_named, generalised_silu
from allheads.gates.approximation import approximate, certificate
from allheads.gates.gates import GateSum

FACTORS = [(9.80, 5.81), (1.0, 0.3), (0.7, 1.3), (2.0, 4.0)]


def _exactly(name: str, t: mpmath.mpf) -> mpmath.mpf:
    if name.startswith("gelu") and abs(t) > 40:
        return max(t, mpmath.mpf(0))  # to more digits than are computed with
    if name == "gelu":
        return t * mpmath.ncdf(t)
    if name == "gelu_tanh":
        u = mpmath.sqrt(2 / mpmath.pi) * (t + mpmath.mpf(44715) / 10**6 * t**3)
        return t / (1 + mpmath.exp(-2 * u))
    return {"silu": lambda: t / (1 + mpmath.exp(-t)), "relu": lambda: max(t, mpmath.mpf(0)), "linear": lambda: t}[
        name
    ]()


def _excess(gates: GateSum, name: str, factors: tuple[float, float], t: float) -> mpmath.mpf:
    """How much further the stored sum is from ``outer f(inner t)`` than it claims; above 0 is a broken certificate."""
    inner, outer = map(mpmath.mpf, factors)
    x, f = mpmath.mpf(t), outer * _exactly(name, inner * mpmath.mpf(t))
    total = mpmath.mpf(0)
    for gate, alpha, delta in zip(gates.gates, gates.alpha, gates.delta, strict=True):
        away = sum(mpmath.exp(a - mpmath.mpf(k) * x) for a, k in zip(gate.offsets, gate.slopes, strict=True))
        total += (alpha * x + delta) / (1 + away)
    scale = mpmath.mpf(3) / 10 + abs(f) if gates.gated else 1
    return abs(total - f) - mpmath.mpf(gates.max_error) * scale


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("tolerance", [1e-3, 5e-7])
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "linear"])
def test_a_stretched_plain_sum_keeps_its_certificate_on_its_whole_domain(name, tolerance, factors):
    gates = approximate(name, tolerance=tolerance).stretched(*factors)
    ends = [gates.domain] if math.isfinite(gates.domain) else [1e8, 1e12]
    drawn = random.Random(0)
    with mpmath.workdps(60):
        for t in [*ends, *(10 ** drawn.uniform(-6, math.log10(min(gates.domain, 1e12))) for _ in range(60))]:
            assert _excess(gates, name, factors, t) <= 0, t
            assert _excess(gates, name, factors, -t) <= 0, -t


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
def test_a_stretched_gated_sum_keeps_its_certificate(name, factors):
    gates = approximate(name, gated=True).stretched(*factors)
    drawn = random.Random(1)
    with mpmath.workdps(60):
        for t in [gates.domain, *(gates.domain * drawn.uniform(0, 1) ** 3 for _ in range(60))]:
            assert max(_excess(gates, name, factors, t), _excess(gates, name, factors, -t)) <= 0, t


def test_alphas_sum_to_what_is_claimed_wherever_the_domain_has_no_end():
    for name in ("gelu", "gelu_tanh", "gelu_fast", "relu", "linear"):
        for factors in [(1.0, 1.0), *FACTORS]:
            gates = approximate(name).stretched(*factors)
            exact = sum(map(Fraction, gates.alpha)) == Fraction(factors[0]) * Fraction(factors[1])
            assert exact or math.isfinite(gates.domain), (name, factors)
    assert math.isinf(approximate("gelu").stretched(2.0, 4.0).domain)
    assert math.isfinite(approximate("gelu").stretched(9.80, 5.81).domain)


@pytest.mark.parametrize(("outer", "inner"), [(0.3, 1.7), (5.81, 9.8), (0.5, 2.0)])
def test_an_exact_activation_is_defined_by_the_floats_that_its_head_has(outer, inner):
    f = generalised_silu(outer, inner)
    for gates in (approximate(f), approximate("silu").stretched(inner, outer)):
        assert gates.max_error == 0.0
        assert gates.activation.silu_form == (gates.alpha[0], gates.gates[0].slopes[0])
        assert gates.domain == math.inf


@pytest.mark.parametrize("factors", [(1.0, 1.0), *FACTORS])
@pytest.mark.parametrize(
    ("name", "gated"), [("silu", True), ("gelu", False), ("gelu_fast", True), ("relu", False), ("quick_gelu", True)]
)
def test_a_certificate_is_found_by_the_heads_alone(name, gated, factors):
    honest = approximate(name, gated=gated).stretched(*factors)
    claims = replace(honest, max_error=1e9, domain=math.inf)
    assert certificate(honest.activation, claims) == certificate(honest.activation, honest) == honest


@pytest.mark.parametrize("change", ["alpha", "delta", "offsets", "slopes", "gated"])
def test_other_heads_have_no_certificate(change):
    honest = approximate("gelu")
    if change in ("offsets", "slopes"):
        first, *rest = honest.gates
        numbers = getattr(first, change)
        other = replace(
            honest, gates=(replace(first, **{change: (math.nextafter(numbers[0], 9e9), *numbers[1:])}), *rest)
        )
    elif change == "gated":
        other = replace(honest, gated=True)
    else:
        other = replace(
            honest, **{change: (math.nextafter(getattr(honest, change)[0], 9e9), *getattr(honest, change)[1:])}
        )
    assert certificate(honest.activation, other) is None


def test_heads_of_another_activation_have_no_certificate():
    assert certificate(activation_named("silu"), approximate("gelu")) is None
    assert certificate(activation_named("relu"), replace(approximate("relu"), gates=())) is None


def test_relu_is_certified_by_its_slope():
    coarse = certificate(activation_named("relu"), approximate("relu", tolerance=1e-2))
    assert coarse is not None and 0.99e-2 < coarse.max_error <= 1e-2
