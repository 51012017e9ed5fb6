r"""Fits of gated activations on ``|g| <= G``: sums of patterns alone, relative to ``0.3 + |f|``.

Every start is a ramp less a gate, ``f(g) = A(g) - d sigma(k g)`` with A increasing (see `ramp` for A), because a
sum of gates that grows must fall as slowly as ``1 / (g + d)`` in its denominator:

- SiLU: ``A = (g + d) sigma(g)``, a head with B tokens less a head with one. The depth d is pinned: errors of the
  patterns grow like d, the floor of the fit falls like ``e^-d``.
- GELU: ``A = (g + d) sigma(1.702 g)`` and *bumps*, even gates ``1 / (1 + e^{a + l g} + e^{a - l g} + ...)``, for
  the rest ``f(g) - g sigma(1.702 g)``, which is even and fades on both sides.
- ReLU: a ramp for ``g + d`` on ``g >= 0`` only, switched on at 0 by one steep token per head.
- the identity: ``relu(g) - relu(-g)``, in which the kinks cancel.

Then all coefficients are refitted together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial

import numpy as np

from allheads.gates.activations import QUICK_GELU_SLOPE, SILU_RELU_GAP
from allheads.gates.fitting.families import Array, Family, gated_family, tied
from allheads.gates.fitting.minimax import Problem, least_squares, minimax
from allheads.gates.fitting.plain_fits import evaluate
from allheads.gates.fitting.ramp import ramps

FLOOR = 0.3
DEPTH = 17.8
Gated = tuple[Family, Array]


def gated_points(low: float, high: float) -> Array:
    """Points that are dense where the activation bends and geometric beyond."""
    g = 3.0 * np.sinh(np.linspace(np.arcsinh(low / 3.0), np.arcsinh(high / 3.0), 420))
    return np.clip(g, low, high)


def gated_problem(activation: str, g: Array) -> Problem:
    """Errors of ``f(g)`` relative to ``0.3 + |f(g)|``."""
    target = evaluate(activation, g)
    return Problem(g, target, FLOOR + np.abs(target))


def refitted(family: Family, z: Array, problem: Problem) -> Gated:
    """Least squares, then minimax, in all coefficients; the full coefficient vector of the better stage."""
    squares = least_squares(family, z, problem, iterations=100, damping=1e-6)
    start = min((z, squares), key=lambda candidate: problem.error(family, candidate))
    best, _ = minimax(family, start, problem, iterations=120, radius=0.05, gain=1e-5)
    return family, family.theta(best)


def sigmoid(x: Array) -> Array:
    """The logistic function, without overflow."""
    return 1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0)))


def silu_starts(domain: float, depth: float, slope: float, most: int) -> Iterator[tuple[float, Array, Array]]:
    """Gates ``C P(g) ~ (g + d) sigma(k g)`` of 1 to ``most`` tokens, k the slope; below ``-0.85 d`` both vanish."""
    g = gated_points(-0.85 * depth, domain)
    gate = sigmoid(slope * g)
    yield from ramps(g, (g + depth) * gate, FLOOR + np.abs(g * gate), most)


def silu_fits(domain: float, fewest: int, most: int, depth: float = DEPTH) -> Iterator[Gated]:
    """SiLU by two heads, with B and one bias tokens."""
    problem = gated_problem("silu", gated_points(-40.0, domain))
    for c, offsets, slopes in silu_starts(domain, depth, 1.0, most):
        if len(slopes) >= fewest:
            family = gated_family((len(slopes), 1), {1: -depth})
            theta = np.r_[0.0, 0.0, c, -depth, offsets, 0.0, slopes, 1.0]
            yield refitted(family, family.free(theta), problem)


def bump_family(pairs: tuple[int, ...]) -> Family:
    """Even gates: head h has ``pairs[h]`` pairs of tokens, scores ``a - l g`` and ``a + l g``."""
    tokens = tuple(2 * n for n in pairs)
    heads, total = len(pairs), sum(tokens)
    groups = [{heads + h: 1.0} for h in range(heads)]
    groups += [{2 * heads + i: 1.0, 2 * heads + i + 1: 1.0} for i in range(0, total, 2)]
    groups += [{2 * heads + total + i: 1.0, 2 * heads + total + i + 1: -1.0} for i in range(0, total, 2)]
    return tied(tokens, groups, {})


@cache
def bumps(activation: str, pairs: tuple[int, ...]) -> Gated:
    """Even gates for ``f(g) - g sigma(1.702 g)``, from seeded random starts."""
    g = np.unique(np.r_[np.linspace(0, 8, 200), np.linspace(8, 20, 60)])
    problem = Problem(g, evaluate(activation, g) - g * sigmoid(QUICK_GELU_SLOPE * g), np.full_like(g, FLOOR))
    family, rng, found = bump_family(pairs), np.random.default_rng([0, *pairs]), []
    for _ in range(25):
        z = np.r_[np.zeros(len(pairs)), rng.normal(-1.0, 2.0, sum(pairs)), np.exp(rng.normal(0.7, 0.5, sum(pairs)))]
        z = least_squares(family, z, problem, ridge=1e-6)
        if np.abs(z[: len(pairs)]).max() < 10.0:
            found.append((problem.error(family, z), z))
    found.sort(key=lambda pair: pair[0])
    z, _ = min((minimax(family, z, problem) for _, z in found[:2]), key=lambda pair: pair[1])
    return family, family.theta(z)


def gelu_fits(activation: str, domain: float, sizes: Sequence[tuple[int, tuple[int, ...]]]) -> Iterator[Gated]:
    """GELU by a ramp of B tokens, a gate of one, and bumps, for every ``(B, pairs of tokens per bump)``."""
    depth = 12.0
    problem = gated_problem(activation, gated_points(-24.0, domain))
    most = max(tokens for tokens, _ in sizes)
    starts = {len(s): (c, a, s) for c, a, s in silu_starts(domain, depth, QUICK_GELU_SLOPE, most)}
    for tokens, pairs in sizes:
        if tokens not in starts:
            continue
        c, offsets, slopes = starts[tokens]
        even, theta = bumps(activation, pairs)
        _, delta, more_offsets, more_slopes = even.parts(theta)
        family = gated_family((tokens, 1, *even.tokens), {1: -depth})
        full = np.r_[np.zeros(family.heads), c, -depth, delta, offsets, 0.0, more_offsets]
        full = np.r_[full, slopes, QUICK_GELU_SLOPE, more_slopes]
        yield refitted(family, family.free(full), problem)


def relu_fits(domain: float, fewest: int, most: int) -> Iterator[Gated]:
    """ReLU by a ramp of ``B - 1`` tokens and a gate, both switched on at 0 by a token of slope k.

    Near 0 the sum differs from ReLU like SiLU's ``W(1/e) / k``; k makes that a fifth of the ramp's own error.
    """
    depth, g = 8.0, np.r_[0.0, np.geomspace(0.03, domain, 300)]
    problem = Problem(g, g + depth, FLOOR + g)
    for c, a, s in ramps(g, g + depth, FLOOR + g, most - 1):
        if len(s) < fewest - 1:
            continue
        ramp = gated_family((len(s),), {})
        _, theta = refitted(ramp, ramp.free(np.r_[0.0, c, a, s]), problem)
        _, (c, *_), a, s = ramp.parts(theta)
        steep = 5.0 * SILU_RELU_GAP / FLOOR / problem.error(ramp, ramp.free(theta))
        switch = np.log(1.0 + np.exp(a).sum())  # so that near 0 the head is the ramp times sigma(k g)
        family = gated_family((len(s) + 1, 1), {})
        yield family, np.r_[0.0, 0.0, c, -depth, a, switch, 0.0, s, steep, steep]


def linear_fits(domain: float, fewest: int, most: int) -> Iterator[Gated]:
    """The identity, ``relu(g) - relu(-g)``: the heads of ReLU and their mirror images, whose kinks cancel."""
    for family, theta in relu_fits(domain, fewest, most):
        _, delta, offsets, slopes = family.parts(theta)
        both = gated_family((*family.tokens, *family.tokens), {})
        yield both, np.r_[np.zeros(4), delta, -delta, offsets, offsets, slopes, -slopes]


#: Tokens of the ramp with pairs of tokens in each bump, roughly equal in error.
GELU_SIZES = (
    (5, (1, 1)),
    (6, (1, 1, 1)),
    (7, (1, 1, 1)),
    (7, (2, 1, 1)),
    (7, (1, 1, 1, 1)),
    (8, (2, 1, 1, 1)),
    (8, (1,) * 5),
    (9, (1,) * 6),
)


def gated_jobs() -> Iterator[tuple[str, str, float, Callable[[], Iterable[Gated]]]]:
    """Activation, name of the family, domain ``|g| <= domain``, and what fits them."""
    for domain, fewest in ((64.0, 5), (128.0, 6), (256.0, 6), (1024.0, 8), (8192.0, 10)):
        # Short ramps overshoot: a smaller depth keeps their amplification down.
        yield ("silu", "ramp", domain, partial(silu_fits, domain, fewest - 2, fewest - 1, depth=12.0))
        yield ("silu", "ramp", domain, partial(silu_fits, domain, fewest, fewest + 6))
    for domain, extra in ((64.0, 0), (256.0, 2), (4096.0, 6)):
        yield ("relu", "ramp", domain, partial(relu_fits, domain, 4 + extra, 9 + extra))
        yield ("linear", "mirrored ramp", domain, partial(linear_fits, domain, 4 + extra, 9 + extra))
        for activation in ("gelu", "gelu_tanh"):
            sizes = [(tokens + extra, pairs) for tokens, pairs in GELU_SIZES]
            yield (activation, "ramp and bumps", domain, partial(gelu_fits, activation, domain, sizes))
