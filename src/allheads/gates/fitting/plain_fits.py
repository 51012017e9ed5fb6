r"""Fits of plain activations on the whole line: seeded random gates, least squares, hops, then minimax.

GELU obeys ``f(t) - f(-t) = t``. Families with that symmetry are fitted on half the line, with half the unknowns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from allheads.gates.activations import activation_named
from allheads.gates.fitting.families import Array, Family, plain_family, symmetric_family
from allheads.gates.fitting.minimax import Problem, least_squares, minimax


@dataclass(frozen=True)
class PlainJob:
    """Which family to fit to which activation, from how many random starts and with how many hops from the best."""

    activation: str
    tokens: tuple[int, ...]
    starts: int
    symmetric: bool = False
    offsets: bool = True
    hops: int = 60

    @property
    def name(self) -> str:
        """The name of the family in the table."""
        return ("symmetric" if self.symmetric else "free") + ("" if self.offsets else ", no offsets")

    @property
    def family(self) -> Family:
        """The family to fit."""
        if self.symmetric:
            return symmetric_family(len(self.tokens), offsets=self.offsets)
        return plain_family(self.tokens, offsets=self.offsets)

    @property
    def problem(self) -> Problem:
        """Absolute errors, on half the line where symmetry gives the other half."""
        half = np.unique(np.r_[np.linspace(0, 7, 211), np.linspace(0, 20, 101)])
        t = half if self.symmetric else np.unique(np.r_[-half, half])
        return Problem(t, evaluate(self.activation, t), np.ones_like(t))

    @property
    def between(self) -> Problem:
        """The same on a finer and longer grid, where a fit that is good on its own points only is found out."""
        t = np.linspace(0.0 if self.symmetric else -60.0, 60.0, 12_001)
        return Problem(t, evaluate(self.activation, t), np.ones_like(t))


def evaluate(activation: str, t: Array) -> Array:
    """``f(t)`` in float64."""
    return activation_named(activation)(torch.from_numpy(t)).numpy()


#: Spread of the offsets, centre and spread of the log slopes. Each finds optima that the others miss.
SPREADS = ((0.7, 0.6, 0.5), (3.0, 0.6, 0.3), (1.5, 0.3, 0.2))


def random_start(family: Family, rng: np.random.Generator, spread: tuple[float, float, float]) -> Array:
    """Random gates about as steep as GELU; alpha and delta are left to the fit.

    Heads of several tokens start as near twins: two twins with large opposite alphas act as a gate and its
    derivative, where the good fits lie and where independent starts never arrive.
    """
    wide, centre, narrow = spread
    heads, own = family.heads, family.tokens[0]
    if own > 1:
        offsets = np.tile(rng.normal(0.0, 1.0, own), heads) + rng.normal(0.0, 0.2, heads * own)
        slopes = np.exp(np.tile(rng.normal(0.6, 0.5, own), heads) + rng.normal(0.0, 0.1, heads * own))
    else:
        offsets, slopes = rng.normal(0.0, wide, heads), np.exp(rng.normal(centre, narrow, heads))
    return _gates_only(family, offsets, slopes)


def _gates_only(family: Family, offsets: Array, slopes: Array) -> Array:
    z, start = np.zeros(family.tie.shape[1]), 2 * family.heads
    gates = family.tie[start:, family.linear :]
    z[family.linear :] = np.linalg.lstsq(gates, np.r_[offsets, slopes], rcond=None)[0]
    return z


def _starts(job: PlainJob, rng: np.random.Generator) -> Iterator[Array]:
    """Random gates, then those of smaller fits: two heads fewer and a random pair, or without value offsets."""
    family = job.family
    # With offsets, heads of several tokens mostly end where they end without, and take longer.
    for k in range(job.starts // 4 if job.offsets and max(job.tokens) > 1 else job.starts):
        yield random_start(family, rng, SPREADS[k % len(SPREADS)])
    if job.symmetric and len(job.tokens) > 2:
        smaller, theta = fit_plain(replace(job, tokens=job.tokens[2:]))
        _, _, offsets, slopes = smaller.parts(theta)
        for k in range(job.starts // 2):
            pair = random_start(symmetric_family(2), rng, SPREADS[k % len(SPREADS)])
            a, slope = pair[-2:]
            yield _gates_only(family, np.r_[a, -a, offsets], np.r_[slope, slope, slopes])
    if job.offsets and (job.symmetric or len(job.tokens) == 2):
        smaller, theta = fit_plain(replace(job, offsets=False))
        _, _, offsets, slopes = smaller.parts(theta)
        yield _gates_only(family, offsets, slopes)


@cache
def fit_plain(job: PlainJob, polish: int = 4) -> tuple[Family, Array]:
    """The best of the ``polish`` most promising fits after the minimax step; coefficients in full."""
    family, problem = job.family, job.problem
    polished = [minimax(family, z, problem)[0] for z in _promising(job, polish)]
    dense = job.between
    z = min((z for z in polished if _sober(family, z)), key=lambda z: dense.error(family, z))
    z, _ = minimax(family, z, problem, iterations=200, radius=0.01, gain=1e-6)
    return family, family.theta(z)


def _promising(job: PlainJob, count: int) -> list[Array]:
    """Least squares from many starts; then the best are shaken and fitted again, which finds far better valleys."""
    family, problem, rng = job.family, job.problem, np.random.default_rng(job.tokens)
    ridge = 1e-6 if max(job.tokens) == 1 else 1e-9  # twins cancel; coinciding single tokens only degenerate
    found: list[tuple[float, Array]] = []

    def tried(start: Array) -> tuple[float, Array]:
        z = least_squares(family, start, problem, iterations=600, ridge=ridge, progress=1e-3)
        return (problem.error(family, z) if _sober(family, z) else np.inf), z

    for start in _starts(job, rng):
        error, z = tried(start)
        if error < np.inf and not any(abs(error - other) < 1e-3 * error for other, _ in found):
            found.append((error, z))
    found = sorted(found, key=lambda pair: pair[0])[:count]
    for _ in range(job.hops):
        which = int(rng.integers(len(found)))
        step = rng.normal(0.0, rng.choice([0.1, 0.3, 0.8]), len(found[which][1]))
        step[: family.linear] = 0.0
        found[which] = min(found[which], tried(family.moved(found[which][1], step)), key=lambda pair: pair[0])
    return [z for _, z in found]


def _sober(family: Family, z: Array) -> bool:
    """Whether the heads do not cancel so far that rounding of the patterns matters."""
    t = np.linspace(-20.0, 20.0, 801)
    return family.amplification(family.theta(z), t, 1.0 + np.maximum(t, 0.0)) < 50.0


def plain_jobs() -> Iterator[PlainJob]:
    """The frontier heads x tokens, less what costs minutes and cannot be better than its neighbours."""
    for activation in ("gelu", "gelu_tanh"):
        for heads in range(1, 9):
            yield PlainJob(activation, (1,) * heads, 30, symmetric=True)
            yield PlainJob(activation, (1,) * heads, 30, symmetric=True, offsets=False)
        for tokens in (2, 3, 4):
            yield PlainJob(activation, (tokens,) * 2, 40, hops=120)
            yield PlainJob(activation, (tokens,) * 2, 40, offsets=False, hops=120)
        for tokens in (2, 3):
            yield PlainJob(activation, (tokens,) * 3, 60, hops=120)
