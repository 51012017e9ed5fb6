r"""Ramps: gates with ``C P(g) ~ A(g)`` for a given increasing A, by exponential sums for ``C / A``.

``C P = A`` asks for ``C / A(g) = 1 + sum_j e^{a_j - s_j g}``, and that is *linear* in ``v_0 = 1 / C`` and
``v_j = e^{a_j} / C``:

    1 / A(g) ~ v_0 + sum_j v_j e^{-s_j g}.

To first order an error of ``1 / A`` moves ``C P`` by ``-A^2`` times it, so ``A^2 / scale`` weights the fit. Only the
slopes are left to search. They are found one at a time: every gap between two slopes, and both ends, is
tried for a new one. (Fitting the gate itself from the start stalls: offsets and slopes trade against each other
along a curved valley.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allheads.gates.fitting.families import Array
from allheads.gates.fitting.minimax import Problem, least_squares


@dataclass(frozen=True)
class ExponentialSum:
    """``v_0 + sum_j v_j e^{-s_j g}`` with ``z = (v_0, v, s)``, seen by the fits as a `Family` is."""

    terms: int

    @property
    def linear(self) -> int:
        """``v_0`` and every ``v_j``."""
        return self.terms + 1

    @property
    def multiplicative(self) -> NDArray[np.bool_]:
        """The slopes."""
        return np.arange(2 * self.terms + 1) >= self.linear

    def units(self, z: Array) -> Array:
        """``dz / dstep`` at step 0."""
        return np.where(self.multiplicative, z, 1.0)

    def moved(self, z: Array, step: Array) -> Array:
        """``z + step``, where a slope's step is that of its logarithm."""
        return np.where(self.multiplicative, z * np.exp(np.clip(step, -1.0, 1.0)), z + step)

    def slopes(self, z: Array) -> Array:
        """``s_j``."""
        return z[self.linear :]

    def value(self, z: Array, g: Array) -> Array:
        """The sum."""
        return self.jacobian(z, g)[0]

    def jacobian(self, z: Array, g: Array) -> tuple[Array, Array]:
        """The sum and its derivatives ``[g z]``."""
        v, s = z[1 : self.linear], self.slopes(z)
        decays = np.exp(np.minimum(-s * g[:, None], 600.0))
        basis = np.c_[np.ones_like(g), decays]
        return basis @ z[: self.linear], np.c_[basis, -g[:, None] * v * decays]


def ramps(g: Array, increasing: Array, scale: Array, most: int) -> Iterator[tuple[float, Array, Array]]:
    """``C``, offsets and slopes of gates with 1, 2, ... ``most`` bias tokens and ``C P(g) ~ increasing`` on g.

    Sums with a negative term are passed over: a score is real, so ``e^a > 0``.
    """
    problem = Problem(g, 1.0 / increasing, scale / increasing**2)
    model, z = ExponentialSum(1), np.array([0.0, 0.0, 2.0 / g[-1]])
    z = least_squares(model, z, problem)
    while True:
        v = z[: model.linear]
        if np.all(v > 0):
            yield 1.0 / v[0], np.log(v[1:] / v[0]), model.slopes(z)
        if model.terms == most:
            return
        model, z = _longer(model, z, problem)


def _longer(model: ExponentialSum, z: Array, problem: Problem) -> tuple[ExponentialSum, Array]:
    """The best sum with one more term."""
    slopes = np.sort(model.slopes(z))
    news = np.r_[slopes[0] / 3.0, np.sqrt(slopes[1:] * slopes[:-1]), slopes[-1] * 2.0]
    longer, trials = ExponentialSum(model.terms + 1), []
    for new in news:
        start = np.r_[np.zeros(longer.linear), np.sort(np.r_[slopes, new])]
        trial = least_squares(longer, start, problem, iterations=300, ridge=1e-13, progress=1e-3)
        residual = problem.residual(longer, trial)
        negative = bool(np.any(trial[: longer.linear] <= 0))
        trials.append((negative, float(residual @ residual), trial))
    return longer, min(trials, key=lambda trial: trial[:2])[2]
