r"""Minimax fits: variable projection finds the valley, sequential linear programming levels the error.

Both minimise ``r(t) = (F(t) - f(t)) / scale(t)`` on a fixed set of points:

1. `least_squares`: ``sum r^2`` by Levenberg-Marquardt in the gates alone; alpha and delta are eliminated (Golub &
   Pereyra 1973, with Kaufman's Jacobian), without which the steps crawl along curved valleys.
2. `minimax`: ``max |r|`` by linear programs ``min e, |r + J dz| <= e`` within a trust region (Osborne & Watson
   1969); at an optimum with as many alternations as unknowns this converges like Remez' algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from allheads.gates.fitting.families import Array, Family

SLOPE_RANGE = (1e-5, 1e8)


@dataclass(frozen=True, eq=False)
class Problem:
    """Points t, target values f(t) and the scale in which errors are measured."""

    t: Array
    target: Array
    scale: Array

    def residual(self, family: Family, z: Array) -> Array:
        """``(F(t) - f(t)) / scale(t)`` on the points."""
        return (family.value(z, self.t) - self.target) / self.scale

    def error(self, family: Family, z: Array) -> float:
        """``max |r|`` on the points."""
        return float(np.abs(self.residual(family, z)).max())


def _admissible(slopes: Array) -> bool:
    low, high = SLOPE_RANGE
    size = np.abs(slopes)
    return bool(np.all(np.isfinite(size)) and np.all(size > low) and np.all(size < high))


def _project(family: Family, z: Array, problem: Problem, ridge: float) -> tuple[Array, Array, Array]:
    """Best linear part for the gates of z: the new z, its residual, and Kaufman's Jacobian in the gates."""
    k = family.linear
    z = np.concatenate([np.zeros(k), z[k:]])
    start, jacobian = family.jacobian(z, problem.t)
    columns = jacobian[:, :k] / problem.scale[:, None]
    norms = np.sqrt((columns**2).sum(0)) + 1e-30
    q, r = np.linalg.qr(np.vstack([columns / norms, ridge * np.eye(k)]))
    z[:k] = np.linalg.solve(r, q.T @ np.r_[(problem.target - start) / problem.scale, np.zeros(k)]) / norms
    value, jacobian = family.jacobian(z, problem.t)
    residual = np.r_[(value - problem.target) / problem.scale, ridge * z[:k] * norms]
    gates = jacobian[:, k:] * family.units(z)[k:] / problem.scale[:, None]
    gates = np.vstack([gates, np.zeros((k, len(z) - k))])
    return z, residual, gates - q @ (q.T @ gates)


# More than five arguments: families differ in how their search starts and when it may stop.
def least_squares(
    family: Family,
    z: Array,
    problem: Problem,
    *,
    iterations: int = 300,
    ridge: float = 1e-9,
    damping: float = 1e-3,
) -> Array:
    """Minimise ``sum r^2``; stop when 15 steps gain less than a thousandth of it. Slopes keep their signs."""
    k = family.linear
    z, residual, jacobian = _project(family, z, problem, ridge)
    cost, history = float(residual @ residual), []
    unknowns = len(z) - k
    for _ in range(iterations):
        norms = np.sqrt((jacobian**2).sum(0)) + 1e-30
        while True:
            matrix = np.vstack([jacobian / norms, np.sqrt(damping) * np.eye(unknowns)])
            step = -np.linalg.lstsq(matrix, np.r_[residual, np.zeros(unknowns)], rcond=None)[0] / norms
            trial = family.moved(z, np.r_[np.zeros(k), np.clip(step, -1.0, 1.0)])
            if _admissible(family.slopes(trial)):
                trial, new_residual, new_jacobian = _project(family, trial, problem, ridge)
                new_cost = float(new_residual @ new_residual)
                if new_cost < cost:
                    break
            damping *= 5.0
            if damping > 1e5:
                return z
        history.append(cost)
        z, residual, jacobian, cost = trial, new_residual, new_jacobian, new_cost
        damping = max(damping / 4.0, 1e-14)
        if len(history) > 20 and cost > history[-15] * (1.0 - 1e-3):
            break
    return z


def _linear_step(jacobian: Array, residual: Array, radius: float) -> Array | None:
    """``min e`` over ``|residual + jacobian d| <= e, |d| <= radius``; the step with e appended, or None."""
    column = -np.ones((len(residual), 1))
    result = linprog(
        np.r_[np.zeros(jacobian.shape[1]), 1.0],
        A_ub=np.vstack([np.hstack([jacobian, column]), np.hstack([-jacobian, column])]),
        b_ub=np.r_[-residual, residual],
        bounds=[(-radius, radius)] * jacobian.shape[1] + [(0, None)],
        method="highs-ds",
    )
    return result.x if result.status == 0 else None


# More than five arguments: families differ in how their search starts and when it may stop.
def minimax(
    family: Family,
    z: Array,
    problem: Problem,
    *,
    iterations: int = 60,
    radius: float = 0.1,
    gain: float = 1e-4,
) -> tuple[Array, float]:
    """Minimise ``max |r|``; stop after three steps that gain less than the fraction ``gain``."""
    small = 0
    residual = problem.residual(family, z)
    error = float(np.abs(residual).max())
    for _ in range(iterations):
        jacobian = family.jacobian(z, problem.t)[1] / problem.scale[:, None]
        units = np.where(family.multiplicative, z, np.maximum(np.abs(z), 1.0))
        # Scaling by the present error keeps the solver's absolute tolerances meaningful at 1e-8.
        solution = _linear_step(jacobian * units / error, residual / error, radius)
        if solution is None or solution[-1] > 1.0 - 1e-9:
            radius /= 4.0
            if radius < 1e-9:
                break
            continue
        trial = family.moved(z, solution[:-1] * np.where(family.multiplicative, 1.0, units))
        new_error = np.inf
        if _admissible(family.slopes(trial)):
            new_residual = problem.residual(family, trial)
            new_error = float(np.abs(new_residual).max())
        ratio = (error - new_error) / (error * (1.0 - solution[-1]))
        if ratio <= 0.05:
            radius = min(radius / 3.0, float(np.abs(solution[:-1]).max()) / 2.0)
            if radius < 1e-9:
                break
            continue
        small = small + 1 if error - new_error < gain * error else 0
        z, residual, error = trial, new_residual, new_error
        radius = min(radius * 2.5, 2.0) if ratio > 0.6 else radius / 2.0 if ratio < 0.25 else radius
        if small >= 3:
            break
    return z, error
