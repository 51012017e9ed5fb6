r"""Fits of plain activations on the whole line: seeded random gates, least squares, hops, then minimax.

GELU obeys ``f(t) - f(-t) = t``. Families with that symmetry are fitted on half the line, with half the unknowns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import torch

from allheads.gates.activations import activation_named
from allheads.gates.fitting.families import Array, Family, plain_family, symmetric_family
from allheads.gates.fitting.minimax import Problem, least_squares, minimax


def evaluate(activation: str, t: Array) -> Array:
    """``f(t)`` in float64."""
    return activation_named(activation)(torch.from_numpy(t)).numpy()


def _problem(activation: str, t: Array) -> Problem:
    """Absolute errors."""
    return Problem(t, evaluate(activation, t), np.ones_like(t))


#: How many of the fits from random starts are shaken and polished.
PROMISING = 4
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


@cache
def fit_plain(
    activation: str, tokens: tuple[int, ...], *, symmetric: bool = False, offsets: bool = True, starts: int = 30
) -> tuple[Family, Array]:
    """The best fit of a plain activation by a family, from so many random starts; coefficients in full.

    On half the line where symmetry gives the other half; chosen on a finer and longer grid, where a fit that is good
    on its own points only is found out.
    """
    family = symmetric_family(len(tokens), offsets=offsets) if symmetric else plain_family(tokens, offsets=offsets)
    half = np.unique(np.r_[np.linspace(0, 7, 211), np.linspace(0, 20, 101)])
    problem = _problem(activation, half if symmetric else np.unique(np.r_[-half, half]))
    dense = _problem(activation, np.linspace(0.0 if symmetric else -60.0, 60.0, 12_001))
    rng = np.random.default_rng(tokens)

    def begin() -> Iterator[Array]:
        """Random gates, then those of smaller fits: two heads fewer and a random pair, or without value offsets."""
        # With offsets, heads of several tokens mostly end where they end without, and take longer.
        for k in range(starts // 4 if offsets and max(tokens) > 1 else starts):
            yield random_start(family, rng, SPREADS[k % len(SPREADS)])
        if symmetric and len(tokens) > 2:
            smaller, theta = fit_plain(activation, tokens[2:], symmetric=True, offsets=offsets, starts=starts)
            _, _, a, slopes = smaller.parts(theta)
            for k in range(starts // 2):
                pair = random_start(symmetric_family(2), rng, SPREADS[k % len(SPREADS)])
                yield _gates_only(family, np.r_[pair[-2], -pair[-2], a], np.r_[pair[-1], pair[-1], slopes])
        if offsets and (symmetric or len(tokens) == 2):
            smaller, theta = fit_plain(activation, tokens, symmetric=symmetric, offsets=False, starts=starts)
            _, _, a, slopes = smaller.parts(theta)
            yield _gates_only(family, a, slopes)

    polished = [minimax(family, z, problem)[0] for z in _promising(family, problem, begin(), rng)]
    z = min((z for z in polished if _sober(family, z)), key=lambda z: dense.error(family, z))
    z, _ = minimax(family, z, problem, iterations=200, radius=0.01, gain=1e-6)
    return family, family.theta(z)


def _promising(family: Family, problem: Problem, starts: Iterator[Array], rng: np.random.Generator) -> list[Array]:
    """Least squares from many starts; then the best are shaken and fitted again, which finds far better valleys."""
    single = max(family.tokens) == 1
    ridge = 1e-6 if single else 1e-9  # twins cancel; coinciding single tokens only degenerate
    found: list[tuple[float, Array]] = []

    def tried(start: Array) -> tuple[float, Array]:
        z = least_squares(family, start, problem, iterations=600, ridge=ridge)
        return (problem.error(family, z) if _sober(family, z) else np.inf), z

    for start in starts:
        error, z = tried(start)
        if error < np.inf and not any(abs(error - other) < 1e-3 * error for other, _ in found):
            found.append((error, z))
    found = sorted(found, key=lambda pair: pair[0])[:PROMISING]
    for _ in range(60 if single else 120):
        which = int(rng.integers(len(found)))
        step = rng.normal(0.0, rng.choice([0.1, 0.3, 0.8]), len(found[which][1]))
        step[: family.linear] = 0.0
        found[which] = min(found[which], tried(family.moved(found[which][1], step)), key=lambda pair: pair[0])
    return [z for _, z in found]


def _sober(family: Family, z: Array) -> bool:
    """Whether the heads do not cancel so far that rounding of the patterns matters."""
    t = np.linspace(-20.0, 20.0, 801)
    return family.amplification(family.theta(z), t, 1.0 + np.maximum(t, 0.0)) < 50.0


def plain_jobs() -> Iterator[tuple[str, str, float, Callable[[], list[tuple[Family, Array]]]]]:
    """Activation, name of the family, domain and what fits it, as `gated_jobs` has them.

    The frontier heads x tokens, less what costs minutes and cannot be better than its neighbours.
    """
    for activation in ("gelu", "gelu_tanh"):
        for offsets in (True, False):
            suffix = "" if offsets else ", no offsets"
            for heads in range(1, 9):
                fit = partial(fit_plain, activation, (1,) * heads, symmetric=True, offsets=offsets)
                yield activation, f"symmetric{suffix}", math.inf, partial(_alone, fit)
            for heads, tokens, starts in ((2, 2, 40), (2, 3, 40), (2, 4, 40), (3, 2, 60), (3, 3, 60)):
                if heads == 2 or offsets:
                    fit = partial(fit_plain, activation, (tokens,) * heads, offsets=offsets, starts=starts)
                    yield activation, f"free{suffix}", math.inf, partial(_alone, fit)


def _alone(fit: Callable[[], tuple[Family, Array]]) -> list[tuple[Family, Array]]:
    return [fit()]
