r"""A proof, in ball arithmetic, that a gate sum is as close to its activation as it claims.

`certify` bounds ``sup |F(t) - f(t)| / scale(t)`` with Arb (python-flint). The stored float64 coefficients are taken
as exact numbers; every operation returns an enclosing ball, so the result holds in exact arithmetic.

*Inside*: on a cell ``m +- h`` the error is its Taylor polynomial at m plus a Lagrange remainder, whose derivative
is enclosed over the whole cell:

    |r(t)| <= sum_{k<6} |c_k| h^k + sup_cell |r^(6)/6!| h^6.

The cell with the largest bound is halved until that bound is within 0.05 per cent of an error that is reached
somewhere (branch and bound). Cells do not cross 0, where relu has its kink and ``|f|`` its sign change.

*Tails*, for plain activations only, beyond ``T >= 1`` with ``T >= 1 / |l|`` for every slope l, so that each term
below decreases in t. To the right a head whose slopes are all positive has

    |alpha t + delta| (1 - P) <= (|alpha| t + |delta|) sum_j e^{a_j - l_j t},

a head with a negative slope has ``P <= e^{-a_j + l_j t}`` for that token, and f is close to t:
``t (1 - Phi(t)) <= phi(t)`` for GELU (Mills' ratio), ``t / (1 + e^{2u}) <= t e^{-2u}`` with
``u = sqrt(2/pi) (t + 0.044715 t^3)`` for its tanh form. What remains of F - t is ``(sum alpha - 1) t + sum delta``
over the heads that end at 1, so their alpha must sum to 1 *exactly*, as rationals: one unit in the last place
would make the error grow without bound. To the left the same holds with t -> -t and 0 in place of 1.

python-flint is imported here only; the bounds it gives are stored with the fits.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

import flint
import torch

from allheads.errors import AllHeadsError
from allheads.gates.gates import Gate, GateSum

ORDER = 6
PRECISION = 160
SLACK = 1.0005

Series: TypeAlias = flint.arb_series


def _sigmoid_unit(t: Series, score: Series, sign: int) -> Series:
    """``t / (1 + e^-score)``, where score has the given sign: no exponential grows."""
    fading = (-sign * score).exp()
    return t / (1 + fading) if sign > 0 else t * fading / (1 + fading)


def _tanh_form(t: Series, constant: flint.arb, sign: int) -> Series:
    cubic = flint.arb(44715) / 10**6
    return _sigmoid_unit(t, 2 * constant * (t + cubic * t * t * t), sign)


#: f as a power series, on a cell whose points all have the sign of the second argument.
_SERIES: dict[str, Callable[[Series, int], Series]] = {
    "silu": lambda t, sign: _sigmoid_unit(t, t, sign),
    "quick_gelu": lambda t, sign: _sigmoid_unit(t, flint.arb(1702) / 1000 * t, sign),
    "gelu": lambda t, _: t * (-t / flint.arb(2).sqrt()).erfc() / 2,
    "gelu_tanh": lambda t, sign: _tanh_form(t, (2 / flint.arb.pi()).sqrt(), sign),
    "gelu_fast": lambda t, sign: _tanh_form(t, flint.arb(7978845608) / 10**10, sign),
    "relu": lambda t, sign: t if sign > 0 else 0 * t,
    "linear": lambda t, _: t,
}


def _pattern(gate: Gate, t: Series) -> Series:
    """``e^{s_0 - s_m} / sum_j e^{s_j - s_m}`` with m the slot of the largest score at the middle of the cell.

    As in a stable softmax, saturated patterns stay finite: their terms are tiny balls, not huge ones. Scores are
    subtracted coefficient by coefficient, since a ball less itself is not 0.
    """
    middle = float(t[0].mid())
    slots = [(0.0, 0.0), *zip(gate.offsets, gate.slopes, strict=True)]
    top, steepest = max(slots, key=lambda slot: slot[0] - slot[1] * middle)
    weights = [((flint.arb(a) - top) - (flint.arb(k) - steepest) * t).exp() for a, k in slots]
    return weights[0] / sum(weights[1:], start=weights[0])


def _error_series(gate_sum: GateSum, t: Series, sign: int) -> Series:
    """``(F - f) / scale`` around one point or over one cell."""
    f = _SERIES[gate_sum.activation.name](t, sign)
    heads = zip(gate_sum.gates, gate_sum.alpha, gate_sum.delta, strict=True)
    total = sum(((flint.arb(a) * t + flint.arb(d)) * _pattern(gate, t) for gate, a, d in heads), start=-f)
    return total / (flint.arb(3) / 10 + sign * f) if gate_sum.gated else total


def _cell(gate_sum: GateSum, low: float, high: float, sign: int) -> tuple[float, float]:
    """Upper bound of the error on [low, high], and a lower bound of its maximum: the error at the middle."""
    middle = low + (high - low) / 2
    half = flint.arb(max(high - middle, middle - low))
    flint.ctx.cap = ORDER
    local = _error_series(gate_sum, Series([flint.arb(middle), 1]), sign)
    reached = float(abs(local[0]).lower())
    flint.ctx.cap = ORDER + 1
    try:
        wide = _error_series(gate_sum, Series([flint.arb(middle, half), 1]), sign)
    except (ValueError, ZeroDivisionError):  # the cell is so wide that a denominator's ball contains 0
        return math.inf, reached
    total = abs(wide[ORDER]) * half**ORDER
    for k in range(ORDER):
        total += abs(local[k]) * half**k
    return rounded_up(total), reached


def rounded_up(ball: flint.arb) -> float:
    """A float64 that is at least every point of the ball; infinite when the ball is not finite."""
    return math.nextafter(float(ball.upper()), math.inf) if ball.is_finite() else math.inf


def sampled_error(gate_sum: GateSum, points: int = 40_001) -> float:
    """Largest error in float64 on points that crowd towards 0: a lower bound of the supremum but for rounding."""
    reach = gate_sum.domain if math.isfinite(gate_sum.domain) else 40.0
    t = torch.sinh(torch.linspace(-1, 1, points, dtype=torch.float64) * math.asinh(reach)).clamp(-reach, reach)
    return float(((gate_sum(t) - gate_sum.activation(t)).abs() / gate_sum.scale(t)).max())


def _side_tail(gate_sum: GateSum, side: int, limit: int, reach: float) -> tuple[flint.arb, flint.arb]:
    """Decaying and lasting bound of ``|F(t) - limit t|`` for ``side * t >= reach``."""
    decaying, lasting, slope_sum = flint.arb(0), flint.arb(0), Fraction(0)
    for gate, alpha, delta in zip(gate_sum.gates, gate_sum.alpha, gate_sum.delta, strict=True):
        size = abs(flint.arb(alpha)) * reach + abs(flint.arb(delta))
        exponents = [(flint.arb(a), side * k) for a, k in zip(gate.offsets, gate.slopes, strict=True)]
        falling = [(a, k) for a, k in exponents if k < 0]
        if falling:
            a, k = min(falling, key=lambda token: token[1])
            decaying += size * (-a + flint.arb(k) * reach).exp()
            continue
        slope_sum += Fraction(alpha)
        lasting += flint.arb(delta)
        decaying += sum((size * (a - flint.arb(k) * reach).exp() for a, k in exponents), start=flint.arb(0))
    if slope_sum != limit:
        raise AllHeadsError(
            f"alphas that sum to exactly {limit} over the heads that stay on at {'+' if side > 0 else '-'}infinity",
            f"a sum off by {float(slope_sum - limit):.3g}",
            "Make the last alpha the remainder, or the error grows with |t|.",
        )
    return decaying, abs(lasting)


def _activation_tail(name: str, reach: float) -> flint.arb:
    """Bound of ``|f(t) - t|`` for ``t >= reach`` and of ``|f(t)|`` for ``t <= -reach``."""
    t = flint.arb(reach)
    if name == "gelu":
        return (-t * t / 2).exp() / (2 * flint.arb.pi()).sqrt()
    constant = flint.arb(7978845608) / 10**10 if name == "gelu_fast" else (2 / flint.arb.pi()).sqrt()
    return t * (-2 * constant * (t + flint.arb(44715) / 10**6 * t * t * t)).exp()


def _tails(gate_sum: GateSum, target: float) -> tuple[float, float]:
    """A reach beyond which the error is small, and the bound of the error there."""
    slopes = [abs(k) for gate in gate_sum.gates for k in gate.slopes]
    if not slopes or min(slopes) == 0.0:
        raise AllHeadsError("slopes other than 0", repr(slopes), "A token with slope 0 never fades.")
    reach = max(16.0, 2.0 / min(slopes))
    while True:
        sides = [_side_tail(gate_sum, side, limit, reach) for side, limit in ((1, 1), (-1, 0))]
        activation = _activation_tail(gate_sum.activation.name, reach)
        fading = max(rounded_up(decaying + activation) for decaying, _ in sides)
        bound = max(rounded_up(decaying + lasting + activation) for decaying, lasting in sides)
        if fading < 1e-3 * target or reach > 1e6:
            return reach, bound
        reach *= 1.5


def certify(gate_sum: GateSum) -> float:
    r"""A rigorous upper bound of ``sup |F(t) - f(t)| / scale(t)`` over ``|t| <= gate_sum.domain``.

    Returns at most 0.05 per cent more than the true supremum. ``gate_sum.max_error`` is ignored.

    Raises:
        AllHeadsError: no series for the activation, or alphas that do not sum to exactly 1 on the whole line.

    >>> from allheads.gates.activations import ACTIVATIONS
    >>> sigmoid_gelu = GateSum(ACTIVATIONS["gelu"], False, (Gate((0.0,), (1.702,)),), (1.0,), (0.0,), 0.0)
    >>> 0.0203 < certify(sigmoid_gelu) < 0.0204
    True
    """
    if gate_sum.activation.name not in _SERIES:
        known = ", ".join(sorted(_SERIES))
        raise AllHeadsError(f"one of {known}", gate_sum.activation.name, "Certify the fit it is derived from.")
    flint.ctx.prec = PRECISION
    reach, tail = gate_sum.domain, 0.0
    if not math.isfinite(reach):
        reach, tail = _tails(gate_sum, sampled_error(gate_sum))
    lower = 0.0
    cells: list[tuple[float, float, float, int]] = []

    def add(low: float, high: float, sign: int) -> None:
        nonlocal lower
        bound, reached = _cell(gate_sum, low, high, sign)
        lower = max(lower, reached)
        heapq.heappush(cells, (-bound, low, high, sign))

    add(-reach, 0.0, -1)
    add(0.0, reach, 1)
    while -cells[0][0] > SLACK * max(lower, tail):
        bound, low, high, sign = heapq.heappop(cells)
        middle = low + (high - low) / 2
        if not low < middle < high:
            return -bound  # two neighbouring floats: nothing left to halve
        add(low, middle, sign)
        add(middle, high, sign)
    return max(-cells[0][0], tail)
