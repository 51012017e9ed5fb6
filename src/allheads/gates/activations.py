"""Activation functions by name: what they compute and where they come from.

Every function is plain torch and works in any floating dtype. torch is imported when one is called: looking up
certificates, which counting needs, takes milliseconds without it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from allheads.errors import AllHeadsError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """A scalar activation ``f``.

    ``squared`` marks functions that grow quadratically: ``f(t) = t g(t)`` is then a gated unit that reads the
    same number as gate and as value. ``silu_form = (a, k)`` says that f is *defined* as ``a t sigma(k t)`` with these
    two floats, which one head with one bias token computes exactly. ``base = (g, inner, outer)`` says that
    ``f(t) = outer * g(inner * t)``, where there is a ``silu_form`` with ``outer * inner`` rounded to a float.
    """

    name: str
    formula: str
    source: str
    #: From tensors to tensors; said without their type, which pydantic would have to find when it reads a saved twin.
    function: Callable[[Any], Any]
    squared: bool = False
    silu_form: tuple[float, float] | None = None
    base: tuple[Activation, float, float] | None = None

    def __call__(self, t: Tensor) -> Tensor:
        """``f(t)``, elementwise."""
        return self.function(t)

    def stretched(self, inner: float, outer: float) -> Activation:
        """``outer * f(inner * t)``; the same object for the same factors.

        >>> import torch
        >>> float(ACTIVATIONS["relu"].stretched(2.0, 3.0)(torch.tensor(1.0)))
        6.0
        """
        return self if inner == outer == 1.0 else _stretched(self, inner, outer)


@cache
def _stretched(f: Activation, inner: float, outer: float) -> Activation:
    a, k = f.silu_form or (0.0, 0.0)
    return Activation(
        f"{outer:.6g} {f.name}({inner:.6g} t)",
        f"{outer:.6g} f({inner:.6g} t), f(t) = {f.formula}",
        f.source,
        lambda t: outer * f(inner * t),
        f.squared,
        (outer * inner * a, inner * k) if f.silu_form else None,
        (f, inner, outer),
    )


def generalised_silu(outer: float, inner: float) -> Activation:
    """``a t sigma(inner t)`` with ``a = outer * inner``, rounded to a float: exactly one head with one bias token.

    That is ``outer * SiLU(inner * t)`` where the product is exact, and within one rounding of it elsewhere.

    >>> generalised_silu(0.5, 2.0).silu_form
    (1.0, 2.0)
    >>> import torch
    >>> float(generalised_silu(0.5, 2.0)(torch.tensor(0.0)))
    0.0
    """
    return Activation(
        f"{outer!r}*silu({inner!r}*t)",
        "a1 a2 t sigma(a2 t)",
        "Huben & Morris 2023, arXiv 2309.08593",
        lambda t: outer * _silu(inner * t),
        silu_form=(outer * inner, inner),
        base=(ACTIVATIONS["silu"], inner, outer),
    )


def _silu(t: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.silu(t)


def _quick_gelu(t: Tensor) -> Tensor:
    import torch

    return t * torch.sigmoid(QUICK_GELU_SLOPE * t)


def _gelu(t: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.gelu(t)


def _gelu_tanh(t: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.gelu(t, approximate="tanh")


def _relu(t: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.relu(t)


def _gelu_fast(t: Tensor) -> Tensor:
    import torch

    return 0.5 * t * (1.0 + torch.tanh(t * 0.7978845608 * (1.0 + 0.044715 * t * t)))


#: The gate constant of the sigmoid approximation of GELU, exact in ``quick_gelu``.
QUICK_GELU_SLOPE = 1.702

ACTIVATIONS = {
    entry.name: entry
    for entry in (
        Activation("silu", "t sigma(t)", "Elfwing et al. 2017, arXiv 1702.03118", _silu, silu_form=(1.0, 1.0)),
        Activation(
            "quick_gelu",
            "t sigma(1.702 t)",
            "Hendrycks & Gimpel 2016, arXiv 1606.08415",
            _quick_gelu,
            silu_form=(1.0, QUICK_GELU_SLOPE),
        ),
        Activation("gelu", "t Phi(t), Phi the normal distribution function", "arXiv 1606.08415", _gelu),
        Activation(
            "gelu_tanh",
            "t/2 (1 + tanh(sqrt(2/pi) (t + 0.044715 t^3)))",
            "arXiv 1606.08415",
            _gelu_tanh,
        ),
        Activation("gelu_fast", "gelu_tanh with sqrt(2/pi) rounded to 0.7978845608", "arXiv 1606.08415", _gelu_fast),
        Activation("relu", "max(t, 0)", "Nair & Hinton 2010", _relu),
        Activation(
            "relu2",
            "max(t, 0)^2",
            "So et al. 2021, arXiv 2109.08668",
            lambda t: _relu(t).square(),
            squared=True,
        ),
        Activation("linear", "t", "the bilinear unit of Shazeer 2020, arXiv 2002.05202", lambda t: t),
    )
}

ALIASES = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "identity": "linear"}

#: ``max_x x / (1 + e^x)``, Lambert's W(1/e): the sup distance of SiLU and ReLU.
SILU_RELU_GAP = 0.2784645427610738


def activation_named(name: str) -> Activation:
    """The activation called ``name``, or a refusal that lists close matches.

    >>> activation_named("gelu_new").name
    'gelu_tanh'
    """
    entry = ACTIVATIONS.get(ALIASES.get(name, name))
    if entry is None:
        known = sorted([*ACTIVATIONS, *ALIASES])
        close = difflib.get_close_matches(name, known) or known
        raise AllHeadsError("a supported activation", repr(name), f"Use one of: {', '.join(close)}.")
    return entry
