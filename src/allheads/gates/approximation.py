r"""From an activation's name to a certified gate sum: exact where possible, else the cheapest fit that is good enough.

The table holds fits of SiLU, GELU, ReLU and the identity; the others follow from them with proof:

- ``f(t) = a t sigma(k t)`` (quick_gelu, generalised SiLU) is ``(a/k) SiLU(k t)``; an error relative to
  ``0.3 + |SiLU|`` becomes at most ``max(1, |a/k|)`` times as large relative to ``0.3 + |f|``, on ``|t| <= G / |k|``.
- ``gelu_fast`` is within 1.1e-12 of ``gelu_tanh``: with ``u = c (t + 0.044715 t^3)`` the derivative of the latter in
  its constant c is at most ``u^2 sech^2(u) / (2 c^2) <= 0.35``, and the constants differ by 2.9e-12.
- ``relu(t)^2`` is t times a gated fit of ``relu(t)``.
- plain ReLU is within ``W(1/e) / k`` of ``t sigma(k t)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from allheads.errors import AllHeadsError
from allheads.gates.activations import SILU_RELU_GAP, Activation, activation_named
from allheads.gates.gates import Gate, GateSum, exact_silu, rescaled
from allheads.gates.table import fits

#: The error asked for when none is named: float64 patterns bring SmolLM2's logits as near as its own rounding noise.
DEFAULT_TOLERANCE = 5e-7
#: The largest error of the sums that are taken, when none is named, where that one is out of reach.
LOOSEST_TOLERANCE = 1e-5
#: The domain of gated fits when none is asked for.
DEFAULT_DOMAIN = 64.0

GELU_FAST_GAP = 1.1e-12


def approximate(
    activation: str | Activation,
    *,
    gated: bool = False,
    tolerance: float | None = None,
    domain: float | None = None,
    size: tuple[int | None, int | None] = (None, None),
) -> GateSum:
    r"""The cheapest certified gate sum for an activation: fewest slots, ``sum_h (1 + B_h)``.

    Args:
        activation: a name (see `activation_named`) or an `Activation`.
        gated: whether the neuron multiplies the activation by a second reading (alpha = 0).
        tolerance: the largest certified error: absolute for plain activations, relative to ``0.3 + |f|`` for
            gated ones and to ``|t| (0.3 + relu(t))`` for squared ReLU. Default: `DEFAULT_TOLERANCE`; where that is
            out of reach, the smallest that is in reach, up to `LOOSEST_TOLERANCE`; where a size is given, the smallest
            that it reaches.
        domain: where the error must hold, ``|t| <= domain``. Default: the whole line for plain activations,
            `DEFAULT_DOMAIN` for gated ones and squared ReLU. The result's domain is at least as large.
        size: take sums of exactly so many heads, with at most so many bias tokens each; None is any number.

    Raises:
        AllHeadsError: an unknown activation, a size that is not positive, or a tolerance out of reach; the
            message names the best that is reachable.

    >>> approximate("silu").max_error
    0.0
    >>> approximate("gelu", size=(2, 1)).max_error < 4e-3
    True
    """
    f = activation_named(activation) if isinstance(activation, str) else activation
    bounded = gated or f.squared
    heads, bias_tokens = size
    _check(heads, bias_tokens, tolerance, domain, bounded)
    free = heads is None and bias_tokens is None
    wanted = tolerance if tolerance is not None else DEFAULT_TOLERANCE if free else math.inf
    reach = domain if domain is not None else DEFAULT_DOMAIN if bounded else math.inf
    sized = [
        c
        for c in _candidates(f, bounded, wanted)
        if heads in (None, c.heads) and (bias_tokens is None or max(c.bias_tokens) <= bias_tokens)
    ]
    fitting = [c for c in sized if c.domain >= reach]
    good = [c for c in fitting if c.max_error <= wanted]
    if good and math.isfinite(wanted):
        return min(good, key=lambda c: (_slots(c), c.max_error))
    best = min(fitting, key=lambda c: c.max_error, default=None)
    if best is not None and tolerance is None and (not free or best.max_error <= LOOSEST_TOLERANCE):
        return best
    sizes = "" if free else f", heads {heads}, bias tokens {bias_tokens}"
    raise AllHeadsError(
        f"a reachable approximation of {f.name} {'gated' if gated else 'plain'}",
        f"tolerance {wanted:g}, domain {reach:g}{sizes}",
        _best_reachable(sized, best),
    )


def certificate(activation: Activation, gates: GateSum) -> GateSum | None:
    """What is proved of these heads as a sum for ``activation``: by the table or by a theorem, not by what they say.

    Heads are looked up by their coefficients among all that `approximate` may choose. None if they are not there.

    >>> gates = approximate("gelu")
    >>> certificate(gates.activation, replace(gates, max_error=1e9)) == gates
    True
    >>> certificate(gates.activation, replace(gates, delta=tuple(1.001 * d for d in gates.delta))) is None
    True
    """
    f, inner, outer = activation.base or (activation, 1.0, 1.0)
    candidates = _candidates(f, gates.gated or f.squared, DEFAULT_TOLERANCE)
    if f.name == "relu" and not gates.gated:
        slopes = [slope / inner for gate in gates.gates for slope in gate.slopes]
        candidates = [_plain_relu(f, slope) for slope in slopes if 0 < slope < math.inf]
    proved = [
        found
        for candidate in candidates
        if candidate.bias_tokens == gates.bias_tokens
        and _heads(found := candidate.stretched(inner, outer)) == _heads(gates)
    ]
    # The same heads may be certified on two domains.
    return next((found for found in proved if found == gates), proved[0] if proved else None)


def _heads(gates: GateSum) -> tuple[object, ...]:
    return gates.gated, gates.gates, gates.alpha, gates.delta


def _best_reachable(sized: list[GateSum], best: GateSum | None) -> str:
    if best is not None:
        unit = 10.0 ** (math.floor(math.log10(best.max_error)) - 2)
        return f"Pass tolerance={math.ceil(best.max_error / unit) * unit:.3g}: the best here is {best.max_error:.3g}."
    if sized:
        return f"The largest domain for these sizes is {max(c.domain for c in sized):g}."
    return "No fit has this size: leave it out."


def _check(
    heads: int | None, bias_tokens: int | None, tolerance: float | None, domain: float | None, bounded: bool
) -> None:
    for name, count, least in (("heads", heads, 1), ("bias_tokens", bias_tokens, 0)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < least):
            raise AllHeadsError(
                f"{name} to be a whole number of at least {least}", repr(count), "Leave it out for any."
            )
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise AllHeadsError("a positive, finite tolerance", repr(tolerance), "Leave it out for the default.")
    if domain is not None and not domain > 0:
        raise AllHeadsError("a positive domain", repr(domain), "Leave it out for the default.")
    if bounded and domain == math.inf:
        raise AllHeadsError("a finite domain", "inf", "Patterns are bounded, so a gated activation has one.")


def _slots(gate_sum: GateSum) -> int:
    return gate_sum.heads + sum(gate_sum.bias_tokens)


def _candidates(f: Activation, bounded: bool, wanted: float) -> Iterable[GateSum]:
    """Every gate sum on offer for an activation; ``wanted`` matters only for ReLU's slope."""
    if f.squared:
        return [replace(c, activation=f, gated=False, alpha=c.delta, delta=c.alpha) for c in _tabled("relu", True)]
    if bounded:
        if f.silu_form is not None and f.name != "silu":
            return [_scaled(c, f) for c in _tabled("silu", True)]
        return _gelu_fast(f, True) if f.name == "gelu_fast" else _tabled(f.name, True)
    if f.silu_form is not None:
        return [exact_silu(f)]
    if f.name == "linear":
        return [GateSum(f, False, (Gate((), ()),), (1.0,), (0.0,), 0.0)]
    if f.name == "relu":
        # The slope leaves room for the rounding of both numbers.
        return [_plain_relu(f, SILU_RELU_GAP * (1 + 1e-12) / min(wanted, 1.0))]
    return _gelu_fast(f, False) if f.name == "gelu_fast" else _tabled(f.name, False)


def _tabled(name: str, gated: bool) -> list[GateSum]:
    return [fit.gate_sum for fit in fits() if fit.gate_sum.activation.name == name and fit.gate_sum.gated == gated]


def _plain_relu(f: Activation, slope: float) -> GateSum:
    """``t sigma(k t)``, off by ``W(1/e) / k`` at most."""
    return GateSum(f, False, (Gate((0.0,), (slope,)),), (1.0,), (0.0,), SILU_RELU_GAP * (1 + 1e-13) / slope)


def _scaled(silu: GateSum, f: Activation) -> GateSum:
    """A gated SiLU fit turned into one of ``a t sigma(k t)`` (see the module for the error)."""
    assert f.silu_form is not None
    factor, slope = f.silu_form
    return rescaled(silu, f, slope, Fraction(factor) / Fraction(slope))


def _gelu_fast(f: Activation, gated: bool) -> list[GateSum]:
    """The fits of gelu_tanh, whose constant differs in the eleventh digit."""
    margin = 4 * GELU_FAST_GAP if gated else GELU_FAST_GAP
    return [replace(c, activation=f, max_error=c.max_error * (1 + 1e-9) + margin) for c in _tabled("gelu_tanh", gated)]
