r"""Gates are attention patterns, and neurons are sums of them.

A head that may attend to its own token (score 0) and to B *bias tokens* (score ``a_j - l_j t``, value zero)
puts on itself the weight

    P(t) = 1 / (1 + sum_j exp(a_j - l_j t)),

a *gate*: one bias token with ``a = 0, l = 1`` is the logistic function. A `GateSum` is a sum of such heads,

    F(t) = sum_h (alpha_h t + delta_h) P_h(t),

and serves both kinds of neuron: a plain one writes ``F(t) w_out``, a gated one ``F(g) u w_out`` with
``alpha = 0``. Gates are closed under products, because their denominators multiply.

Source: Huben & Morris 2023 (arXiv 2309.08593) for SiLU with one head; sums and products are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from allheads.errors import AllHeadsError
from allheads.gates.activations import Activation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

#: A plain sum whose alphas were rounded drifts from its activation in proportion to ``|t|``: it is certified this far.
DRIFT_REACH = 1e5
#: Half of float64's eps, and room for the roundings of the bounds themselves.
_ROUNDOFF, _UP = 2.0**-53, 1 + 1e-9


@dataclass(frozen=True)
class Gate:
    """One head: the scores ``offsets[j] - slopes[j] * t`` of its bias tokens against 0 on itself.

    >>> import torch
    >>> sigmoid = Gate((0.0,), (1.0,))
    >>> float(sigmoid(torch.tensor(0.0)))
    0.5
    >>> (sigmoid * sigmoid).bias_tokens
    3
    """

    offsets: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def bias_tokens(self) -> int:
        """How many bias tokens the head attends to."""
        return len(self.offsets)

    def scores(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape slot"]:
        """Attention scores: slot 0 is the token itself (0), slots 1..B the bias tokens."""
        import torch

        offsets = torch.tensor((0.0, *self.offsets), dtype=t.dtype, device=t.device)
        slopes = torch.tensor((0.0, *self.slopes), dtype=t.dtype, device=t.device)
        return offsets - slopes * t[..., None]

    def __call__(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The pattern on self, ``P(t)`` in [0, 1]."""
        return self.scores(t).softmax(-1)[..., 0]

    def __mul__(self, other: Gate) -> Gate:
        """``(1 + sum e^{s_i}) (1 + sum e^{r_j})``: both token lists, and every pair of them."""
        pairs = [
            (a + b, k + m)
            for a, k in zip(self.offsets, self.slopes, strict=True)
            for b, m in zip(other.offsets, other.slopes, strict=True)
        ]
        return Gate(
            self.offsets + other.offsets + tuple(a for a, _ in pairs),
            self.slopes + other.slopes + tuple(k for _, k in pairs),
        )

    def stretched(self, factor: float) -> Gate:
        """The gate ``t -> P(factor * t)``."""
        return Gate(self.offsets, tuple(factor * k for k in self.slopes))


@dataclass(frozen=True)
class GateSum:
    r"""``F(t) = sum_h (alpha_h t + delta_h) P_h(t)``, with a certified distance to an activation ``f``.

    In exact arithmetic, for every t with ``|t| <= domain``,

        |F(t) - f(t)| <= max_error * scale(t),

    where the scale is 1 for a plain activation, ``0.3 + |f(t)|`` for a gated one and ``|t| (0.3 + |relu(t)|)``
    for squared ReLU, which is a gated unit whose value is its own gate input. Rounding is not included.
    """

    activation: Activation
    gated: bool
    gates: tuple[Gate, ...]
    alpha: tuple[float, ...]
    delta: tuple[float, ...]
    max_error: float
    domain: float = math.inf

    @property
    def heads(self) -> int:
        """How many heads make one neuron."""
        return len(self.gates)

    @property
    def bias_tokens(self) -> tuple[int, ...]:
        """How many bias tokens each head attends to."""
        return tuple(gate.bias_tokens for gate in self.gates)

    def __call__(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Evaluate the sum, differentiably, in the dtype of ``t``."""
        import torch

        total = torch.zeros_like(t)
        for gate, alpha, delta in zip(self.gates, self.alpha, self.delta, strict=True):
            total = total + (alpha * t + delta) * gate(t)
        return total

    def stretched(self, inner: float, outer: float) -> GateSum:
        """``outer * F(inner * t)``, for factors above 0, of a sum that is not of squared activations.

        The certificate goes along, see `rescaled`: ``outer (0.3 + |f|) <= max(1, outer) (0.3 + outer |f|)``.

        >>> import torch
        >>> from allheads.gates.approximation import approximate
        >>> float(approximate("silu").stretched(2.0, 3.0)(torch.tensor(0.5)) / torch.sigmoid(torch.tensor(1.0)))
        3.0
        """
        if inner == outer == 1.0:
            return self
        if inner <= 0 or outer <= 0 or self.activation.squared:
            raise AllHeadsError("factors above 0 on an activation that is not squared", f"{inner}, {outer}", "")
        activation = self.activation.stretched(inner, outer)
        if self.max_error == 0.0 and activation.silu_form is not None:
            return exact_silu(activation)
        return rescaled(self, activation, inner, Fraction(outer))

    def scale(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What ``max_error`` is measured in at ``t``."""
        import torch

        if self.activation.squared:
            return t.abs() * (0.3 + torch.relu(t))
        return 0.3 + self.activation(t).abs() if self.gated else torch.ones_like(t)

    def bound(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The certified bound on ``|F(t) - f(t)|`` at ``t``; infinite outside the domain."""
        import torch

        inside = t.abs() <= self.domain
        return torch.where(inside, self.max_error * self.scale(t), torch.inf)


def exact_silu(activation: Activation) -> GateSum:
    """The one head that computes ``a t sigma(k t)`` exactly: ``silu_form`` is what the activation is defined by."""
    assert activation.silu_form is not None
    factor, slope = activation.silu_form
    return GateSum(activation, False, (Gate((0.0,), (slope,)),), (factor,), (0.0,), 0.0)


def rescaled(gates: GateSum, activation: Activation, inner: float, outer: Fraction) -> GateSum:
    r"""``outer * F(inner * t)`` as a sum for ``activation``, certified as it is stored: with rounded coefficients.

    With u the unit roundoff and an exponent ``e_j = a_j - k_j t`` of a bias token, ``P w_j <= e^{-|e_j|}`` for the
    pattern P on self and ``w_j`` on the token. So a slope that is rounded moves a head by at most

        u |alpha t + delta| |k_j t| e^{-|e_j|}  <=  u (|alpha| / |k_j| max(4, a_j^2) + |delta| max(1, |a_j|)),

    a rounded delta by its own error, and a rounded alpha by its error times ``|t|``, which is why the domain ends at
    `DRIFT_REACH` unless every alpha is exact.
    """
    # Rounded once, from the exact products.
    alpha = tuple(float(outer * Fraction(inner) * Fraction(a)) for a in gates.alpha)
    delta = tuple(float(outer * Fraction(d)) for d in gates.delta)
    stretched = tuple(gate.stretched(inner) for gate in gates.gates)
    drift = sum(
        abs(Fraction(a) - outer * Fraction(inner) * Fraction(b)) for a, b in zip(alpha, gates.alpha, strict=True)
    )
    moved = float(sum(abs(Fraction(a) - outer * Fraction(b)) for a, b in zip(delta, gates.delta, strict=True)))
    for gate, kept, a, d in zip(stretched, gates.gates, alpha, delta, strict=True):
        for offset, slope, exact in zip(gate.offsets, gate.slopes, kept.slopes, strict=True):
            if Fraction(slope) != Fraction(inner) * Fraction(exact):
                moved += _ROUNDOFF * (abs(a / slope) * max(4.0, offset**2) + abs(d) * max(1.0, abs(offset)))
    size = abs(float(outer))
    error = gates.max_error * (max(1.0, size) if gates.gated else size)
    domain = gates.domain if inner in (1.0, -1.0) else math.nextafter(gates.domain / abs(inner), 0.0)
    if math.isinf(gates.domain):
        domain = math.inf
    if drift:
        domain = min(domain, DRIFT_REACH)
        moved += float(drift) * domain
    # Gated sums are measured in 0.3 + |f|, which is 0.3 at least.
    moved = _UP * moved / (0.3 if gates.gated else 1.0)
    return GateSum(activation, gates.gated, stretched, alpha, delta, error + moved if moved else error, domain)
