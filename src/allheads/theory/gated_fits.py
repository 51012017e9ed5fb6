r"""Fits of gated activations on ``|g| <= G``: a ramp times a gate, then fewer and fewer tokens.

For SiLU the start is exact up to the ramp: with ``C/(g + d) = 1 + sum_j e^{a_j - s_j g}`` on ``-d < g <= G``,

    g sigma(g) = C sigma(g) / (1 + sum_j e^{a_j - s_j g}) - d sigma(g),

a head with 2 J + 1 bias tokens less a head with one. The product structure wastes tokens: they merge pairwise, the
cheapest pair first, and after each merger least squares and minimax refit everything but d, which is pinned
because rounding errors of the patterns grow like d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import nnls

from allheads.theory.family import Array, Family, gated_family
from allheads.theory.minimax import Problem, least_squares, minimax
from allheads.theory.plain_fits import evaluate

FLOOR = 0.3


def gated_points(domain: float, low: float = -40.0, count: int = 420) -> Array:
    """Points that are dense where the activation bends and geometric beyond."""
    reach = 3.0 * np.sinh(np.linspace(np.arcsinh(low / 3.0), np.arcsinh(domain / 3.0), count))
    return np.clip(reach, max(low, -domain), domain)


def gated_problem(activation: str, g: Array) -> Problem:
    target = evaluate(activation, g)
    return Problem(g, target, FLOOR + np.abs(target))


def ramp(depth: float, domain: float, terms: int) -> tuple[float, Array, Array]:
    """``C``, offsets and slopes of ``C/(g + d) ~ 1 + sum_j e^{a_j - s_j g}``, d the depth, by non-negative least squares.

    The slopes are geometric; a small search finds their ends. All terms are kept positive, since scores are real.
    """
    g = np.linspace(-0.9 * depth, domain, 300)
    weight = (g + depth) * np.exp(np.minimum(g, 0.0))
    best: tuple[float, Array, Array] | None = None
    for low in np.geomspace(0.1, 1.0, 8) / domain:
        for high in np.geomspace(0.1, 3.0, 12):
            slopes = np.geomspace(low, high, terms)
            basis = np.c_[np.ones_like(g), np.exp(-slopes * g[:, None])] * weight[:, None]
            coefficients = nnls(basis, weight / (g + depth))[0]
            error = float(np.abs(basis @ coefficients - weight / (g + depth)).max())
            if coefficients.min() > 0 and (best is None or error < best[0]):
                best = error, slopes, coefficients
    assert best is not None, "every geometric ladder of slopes lost a term"
    _, slopes, coefficients = best
    return 1.0 / coefficients[0], np.log(coefficients[1:] / coefficients[0]), slopes


@dataclass(frozen=True, eq=False)
class Chain:
    """A sum of gates that loses one bias token at a time."""

    problem: Problem
    pinned: dict[int, float]

    def build(self, tokens: tuple[int, ...], delta: Array, offsets: Array, slopes: Array) -> tuple[Family, Array]:
        family = gated_family(tokens, self.pinned)
        return family, family.free(np.r_[np.zeros(len(tokens)), delta, offsets, slopes])

    def mergers(self, family: Family, z: Array) -> Iterator[tuple[Family, Array]]:
        """Every way to replace two bias tokens of one head, neighbours in slope, by one."""
        _, delta, offsets, slopes = family.parts(family.theta(z))
        for head in range(family.heads):
            own = np.flatnonzero(family.head_of == head)
            own = own[np.argsort(slopes[own])]
            for i, j in zip(own[:-1], own[1:], strict=True):
                share = 1.0 / (1.0 + np.exp(offsets[j] - offsets[i]))
                a, k = offsets.copy(), slopes.copy()
                a[i] = np.logaddexp(offsets[i], offsets[j])
                k[i] = share * slopes[i] + (1.0 - share) * slopes[j]
                tokens = tuple(n - (h == head) for h, n in enumerate(family.tokens))
                yield self.build(tokens, delta, np.delete(a, j), np.delete(k, j))

    def shorter(self, family: Family, z: Array, keep: int = 2) -> tuple[Family, Array]:
        """The best fit with one token less."""
        trials = []
        for smaller, start in self.mergers(family, z):
            start = least_squares(smaller, start, self.problem, iterations=15)
            trials.append((self.problem.error(smaller, start), smaller, start))
        trials.sort(key=lambda trial: trial[0])
        refined = []
        for _, smaller, start in trials[:keep]:
            start = least_squares(smaller, start, self.problem, iterations=150)
            refined.append((self.problem.error(smaller, start), smaller, start))
        _, family, z = min(refined, key=lambda trial: trial[0])
        return family, z

    def polished(self, family: Family, z: Array) -> tuple[Array, float]:
        z = least_squares(family, z, self.problem, iterations=400, damping=1e-6, progress=1e-4)
        return minimax(family, z, self.problem, iterations=120, radius=0.05, gain=1e-3)


def silu_chain(depth: float, domain: float, terms: int, fewest: int, most: int) -> Iterator[tuple[Family, Array]]:
    """Two-head fits of SiLU with ``most`` down to ``fewest`` tokens in the first head and one in the second."""
    chain = Chain(gated_problem("silu", gated_points(domain)), {1: -depth})
    c, a, s = ramp(depth, domain, terms)
    family, z = chain.build(
        (2 * terms + 1, 1), np.array([c, -depth]), np.r_[a, 0.0, a, 0.0], np.r_[s, 1.0, 1.0 + s, 1.0]
    )
    z = least_squares(family, z, chain.problem, iterations=150)
    while family.tokens[0] >= fewest:
        if family.tokens[0] <= most:
            yield family, family.theta(chain.polished(family, z)[0])
        family, z = chain.shorter(family, z)


GatedJob = tuple[str, str, float, Callable[[], Iterable[tuple[Family, Array]]]]


def gated_jobs() -> Iterator[GatedJob]:
    """Activation, name of the family, domain and the fits of every chain."""
    for domain in (64.0,):
        for depth in (18.0,):
            yield "silu", "ramp", domain, partial(silu_chain, depth, domain, 7, 6, 12)
