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
from functools import cached_property

import numpy as np

from allheads.gates.fitting.families import Array, Family
from allheads.gates.fitting.minimax import Problem, least_squares


class ExponentialSum(Family):
    """``v_0 + sum_j v_j e^{-s_j g}`` with ``z = (v_0, v, s)``: the coefficients of one head in other roles."""

    @cached_property
    def linear(self) -> int:
        """``v_0`` and every ``v_j``."""
        return self.total_tokens + 1

    def value(self, z: Array, t: Array) -> Array:
        """The sum."""
        return self.jacobian(z, t)[0]

    def jacobian(self, z: Array, t: Array) -> tuple[Array, Array]:
        """The sum and its derivatives ``[t z]``."""
        v, s = z[1 : self.linear], self.slopes(z)
        decays = np.exp(np.minimum(-s * t[:, None], 600.0))
        basis = np.c_[np.ones_like(t), decays]
        return basis @ z[: self.linear], np.c_[basis, -t[:, None] * v * decays]


def exponential_sum(terms: int) -> ExponentialSum:
    """The sums with this many exponentials."""
    tie = np.eye(2 * terms + 2)[:, 1:]
    return ExponentialSum((terms,), tie, np.zeros(len(tie)))


def ramps(g: Array, increasing: Array, scale: Array, most: int) -> Iterator[tuple[float, Array, Array]]:
    """``C``, offsets and slopes of gates with 1, 2, ... ``most`` bias tokens and ``C P(g) ~ increasing`` on g.

    Sums with a negative term are passed over: a score is real, so ``e^a > 0``.
    """
    problem = Problem(g, 1.0 / increasing, scale / increasing**2)
    model, z = exponential_sum(1), np.array([0.0, 0.0, 2.0 / g[-1]])
    z = least_squares(model, z, problem)
    while True:
        v = z[: model.linear]
        if np.all(v > 0):
            yield 1.0 / v[0], np.log(v[1:] / v[0]), model.slopes(z)
        if model.total_tokens == most:
            return
        model, z = _longer(model, z, problem)


def _longer(model: ExponentialSum, z: Array, problem: Problem) -> tuple[ExponentialSum, Array]:
    """The best sum with one more term."""
    slopes = np.sort(model.slopes(z))
    news = np.r_[slopes[0] / 3.0, np.sqrt(slopes[1:] * slopes[:-1]), slopes[-1] * 2.0]
    longer, trials = exponential_sum(model.total_tokens + 1), []
    for new in news:
        start = np.r_[np.zeros(longer.linear), np.sort(np.r_[slopes, new])]
        trial = least_squares(longer, start, problem, ridge=1e-13)
        residual = problem.residual(longer, trial)
        negative = bool(np.any(trial[: longer.linear] <= 0))
        trials.append((negative, float(residual @ residual), trial))
    return longer, min(trials, key=lambda trial: trial[:2])[2]
