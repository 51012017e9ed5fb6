r"""Fits of plain activations on the whole line: seeded random gates, least squares, then minimax.

GELU obeys ``f(t) - f(-t) = t``. Families with that symmetry are fitted on half the line, with half the unknowns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from allheads.theory.activations import activation_named
from allheads.theory.family import Array, Family, plain_family, symmetric_family
from allheads.theory.minimax import Problem, least_squares, minimax


@dataclass(frozen=True)
class PlainJob:
    """Which family to fit to which activation, and from how many random starts."""

    activation: str
    tokens: tuple[int, ...]
    starts: int
    symmetric: bool = False
    offsets: bool = True

    @property
    def name(self) -> str:
        return ("symmetric" if self.symmetric else "free") + ("" if self.offsets else ", no offsets")

    @property
    def family(self) -> Family:
        if self.symmetric:
            return symmetric_family(len(self.tokens), offsets=self.offsets)
        return plain_family(self.tokens, offsets=self.offsets)

    @property
    def problem(self) -> Problem:
        half = np.unique(np.r_[np.linspace(0, 7, 211), np.linspace(0, 20, 101)])
        t = half if self.symmetric else np.unique(np.r_[-half, half])
        return Problem(t, evaluate(self.activation, t), np.ones_like(t))


def evaluate(activation: str, t: Array) -> Array:
    return activation_named(activation)(torch.from_numpy(t)).numpy()


def random_start(family: Family, rng: np.random.Generator) -> Array:
    """Random gates about as steep as GELU; alpha and delta are left to the fit.

    Heads of several tokens start as near twins: two twins with large opposite alphas act as a gate and its
    derivative, where the good fits lie and where independent starts never arrive.
    """
    heads, several = family.heads, max(family.tokens) > 1
    if several:
        own = family.tokens[0]
        offsets = np.tile(rng.normal(0.0, 1.0, own), heads) + rng.normal(0.0, 0.2, heads * own)
        slopes = np.exp(np.tile(rng.normal(0.6, 0.5, own), heads) + rng.normal(0.0, 0.1, heads * own))
    else:
        offsets, slopes = rng.normal(0.0, 0.7, heads), np.exp(rng.normal(0.6, 0.5, heads))
    z, start = np.zeros(family.tie.shape[1]), 2 * heads
    gates = family.tie[start:, family.linear :]
    z[family.linear :] = np.linalg.lstsq(gates, np.r_[offsets, slopes], rcond=None)[0]
    return z


def fit_plain(job: PlainJob, seed: int = 0, polish: int = 3) -> tuple[Family, Array]:
    """The best of the ``polish`` most promising starts after the minimax step; coefficients in full."""
    family, problem = job.family, job.problem
    rng = np.random.default_rng([seed, *job.tokens])
    ridge = 1e-6 if max(job.tokens) == 1 else 1e-9  # twins cancel; coinciding single tokens only degenerate
    found: list[tuple[float, Array]] = []
    for _ in range(job.starts):
        z = least_squares(family, random_start(family, rng), problem, iterations=600, ridge=ridge, progress=1e-4)
        if _sober(family, z):
            found.append((problem.error(family, z), z))
    found.sort(key=lambda pair: pair[0])
    polished = [minimax(family, z, problem) for _, z in found[:polish]]
    z, _ = min((pair for pair in polished if _sober(family, pair[0])), key=lambda pair: pair[1])
    return family, family.theta(z)


def _sober(family: Family, z: Array) -> bool:
    """Whether no head is scaled so far up that the heads cancel."""
    alpha, delta, _, _ = family.parts(family.theta(z))
    return float(np.abs(np.r_[alpha, delta]).max()) < 40.0


def plain_jobs() -> Iterator[PlainJob]:
    """The frontier heads x tokens, less what costs minutes and cannot be better than its neighbours."""
    for activation in ("gelu", "gelu_tanh"):
        for heads in range(1, 9):
            yield PlainJob(activation, (1,) * heads, 20, symmetric=True)
            yield PlainJob(activation, (1,) * heads, 20, symmetric=True, offsets=False)
        for tokens in (2, 3, 4):
            yield PlainJob(activation, (tokens,) * 2, 16)
            yield PlainJob(activation, (tokens,) * 2, 16, offsets=False)
        for tokens in (2, 3):
            yield PlainJob(activation, (tokens,) * 3, 8)
