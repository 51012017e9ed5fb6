r"""Families of gate sums with shared coefficients, in NumPy: values and derivatives for the fits.

A family fixes how many bias tokens each head has and ties the coefficients of the sum to fewer free numbers z,

    theta = constant + tie @ z,     theta = (alpha [head], delta [head], offsets [token], slopes [token]),

so that symmetry, ``sum alpha = 1`` or ``alpha = 0`` hold by construction. The first `Family.linear` entries of z
move alpha and delta only, and the sum depends on them linearly. Development only: users need no fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Family:
    """Gate sums with ``tokens[h]`` bias tokens in head h and tied coefficients (see the module)."""

    tokens: tuple[int, ...]
    tie: Array
    constant: Array

    @property
    def heads(self) -> int:
        """How many heads make the sum."""
        return len(self.tokens)

    @property
    def total_tokens(self) -> int:
        """Bias tokens of all heads together."""
        return sum(self.tokens)

    @cached_property
    def head_of(self) -> NDArray[np.int_]:
        """The head of every token."""
        return np.repeat(np.arange(self.heads), self.tokens)

    @cached_property
    def linear(self) -> int:
        """How many leading entries of z move alpha and delta only."""
        return int(np.abs(self.tie[: 2 * self.heads]).any(0).sum())

    @cached_property
    def multiplicative(self) -> NDArray[np.bool_]:
        """Which entries of z are slopes; these keep their sign and move by factors."""
        return np.asarray(np.abs(self.tie[2 * self.heads + self.total_tokens :]).any(0), dtype=np.bool_)

    def moved(self, z: Array, step: Array) -> Array:
        """``z + step``, where a slope's step is that of its logarithm."""
        return np.where(self.multiplicative, z * np.exp(np.clip(step, -1.0, 1.0)), z + step)

    def units(self, z: Array) -> Array:
        """``dz / dstep`` at step 0."""
        return np.where(self.multiplicative, z, 1.0)

    def theta(self, z: Array) -> Array:
        """All coefficients in full."""
        return self.constant + self.tie @ z

    def parts(self, theta: Array) -> tuple[Array, Array, Array, Array]:
        """``alpha, delta, offsets, slopes`` of a full coefficient vector."""
        heads, tokens = self.heads, self.total_tokens
        return (
            theta[:heads],
            theta[heads : 2 * heads],
            theta[2 * heads : 2 * heads + tokens],
            theta[2 * heads + tokens :],
        )

    def slopes(self, z: Array) -> Array:
        """The slopes of all tokens."""
        return self.parts(self.theta(z))[3]

    def free(self, theta: Array) -> Array:
        """The z nearest to a full coefficient vector."""
        return np.asarray(np.linalg.lstsq(self.tie, theta - self.constant, rcond=None)[0], dtype=np.float64)

    def patterns(self, theta: Array, t: Array) -> tuple[Array, Array]:
        """Patterns on self ``[t head]`` and unnormalised token weights ``exp(a - l t)`` ``[t token]``."""
        _, _, offsets, slopes = self.parts(theta)
        weights = np.exp(np.minimum(offsets - slopes * t[:, None], 400.0))  # float64 overflows at e^709
        denominator = np.ones((len(t), self.heads))
        for token, head in enumerate(self.head_of):
            denominator[:, head] += weights[:, token]
        return 1.0 / denominator, weights

    def value(self, z: Array, t: Array) -> Array:
        """``F(t)``."""
        theta = self.theta(z)
        alpha, delta, _, _ = self.parts(theta)
        return ((alpha * t[:, None] + delta) * self.patterns(theta, t)[0]).sum(1)

    def jacobian(self, z: Array, t: Array) -> tuple[Array, Array]:
        """``F(t)`` and ``dF/dz`` of shape ``[t z]``."""
        theta = self.theta(z)
        alpha, delta, _, _ = self.parts(theta)
        pattern, weights = self.patterns(theta, t)
        terms = (alpha * t[:, None] + delta) * pattern
        attended = terms[:, self.head_of] * (pattern[:, self.head_of] * weights)  # minus dF/d offset
        full = np.concatenate([t[:, None] * pattern, pattern, -attended, t[:, None] * attended], 1)
        return terms.sum(1), full @ self.tie

    def amplification(self, theta: Array, t: Array, scale: Array) -> float:
        """``max_t sum_h |alpha_h t + delta_h| P_h(t) / scale(t)``: how much rounding of the patterns grows."""
        alpha, delta, _, _ = self.parts(theta)
        return float(((np.abs(alpha * t[:, None] + delta) * self.patterns(theta, t)[0]).sum(1) / scale).max())


def tied(tokens: tuple[int, ...], groups: list[dict[int, float]], constant: dict[int, float]) -> Family:
    """A family from the coefficients each free number moves (those of alpha and delta first)."""
    size = 2 * len(tokens) + 2 * sum(tokens)
    tie, fixed = np.zeros((size, len(groups))), np.zeros(size)
    for column, group in enumerate(groups):
        for row, weight in group.items():
            tie[row, column] = weight
    for row, value in constant.items():
        fixed[row] = value
    return Family(tokens, tie, fixed)


def plain_family(tokens: tuple[int, ...], *, offsets: bool = True) -> Family:
    """Every coefficient free but for ``sum alpha = 1``; ``offsets=False`` sets delta = 0."""
    heads, size = len(tokens), 2 * len(tokens) + 2 * sum(tokens)
    groups = [{h: 1.0, heads - 1: -1.0} for h in range(heads - 1)]
    first = heads if offsets else 2 * heads
    return tied(tokens, [*groups, *({row: 1.0} for row in range(first, size))], {heads - 1: 1.0})


def symmetric_family(heads: int, *, offsets: bool = True) -> Family:
    """One token per head, tied to ``F(t) - F(-t) = t``: heads ``(alpha t +- delta) sigma(l t -+ a)`` in pairs.

    An odd head out has a = delta = 0; ``offsets=False`` sets every delta = 0.
    """
    h, pairs = heads, [(2 * i, 2 * i + 1) for i in range(heads // 2)]
    rest = {h - 1: -1.0} if h % 2 else {h - 1: -0.5, h - 2: -0.5}
    constant = {h - 1: 1.0} if h % 2 else {h - 1: 0.5, h - 2: 0.5}
    groups = [{p: 0.5, q: 0.5, **rest} for p, q in (pairs if h % 2 else pairs[:-1])]
    groups += [{h + p: 1.0, h + q: -1.0} for p, q in pairs if offsets]
    groups += [{2 * h + p: 1.0, 2 * h + q: -1.0} for p, q in pairs]
    groups += [{3 * h + p: 1.0, 3 * h + q: 1.0} for p, q in pairs]
    return tied((1,) * heads, groups + ([{4 * h - 1: 1.0}] if h % 2 else []), constant)


def gated_family(tokens: tuple[int, ...], pinned: dict[int, float]) -> Family:
    """``alpha = 0``; the deltas of the heads in ``pinned`` keep their value, which limits the amplification."""
    heads, size = len(tokens), 2 * len(tokens) + 2 * sum(tokens)
    groups = [{row: 1.0} for row in range(heads, size) if row - heads not in pinned]
    return tied(tokens, groups, {heads + h: value for h, value in pinned.items()})
