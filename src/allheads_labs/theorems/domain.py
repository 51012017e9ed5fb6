r"""**After a norm, the domain of a gate is a theorem.**

*Claim.* If the stream is read through RMSNorm with gain ``gamma``, then for every input, however large,

    |w . x + b|  <=  |b| + sqrt(d_model) ||gamma * w||,

and through LayerNorm with shift ``beta`` likewise, with ``|w . beta + b|`` and ``gamma * w`` less its mean.

*Proof.* A norm writes ``gamma * n + beta`` with ``||n|| <= sqrt(d_model)``, and LayerNorm n orthogonal to 1; the rest
is Cauchy and Schwarz. Equality holds in the limit of large inputs along ``gamma * w``: the bound is the best
possible.

*Source.* Ours; `allheads.models.norms` measures gamma and beta on the norms of a model.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from allheads.pure.runner import Norm


def reach(norm: Norm, w: Float[Tensor, " d_model"], b: float = 0.0) -> float:
    """The largest ``|w . norm(x) + b|`` over all x.

    >>> import torch
    >>> norm = Norm(torch.ones(4).double(), torch.zeros(4).double(), centred=False, eps=1e-5)
    >>> reach(norm, torch.tensor([1.0, 0, 0, 0]).double())
    2.0
    """
    direction = norm.gain * w
    if norm.centred:
        direction = direction - direction.mean()
    return abs(float(norm.shift @ w) + b) + math.sqrt(len(w)) * float(direction.norm())


def worst_input(norm: Norm, w: Float[Tensor, " d_model"], b: float = 0.0, *, size: float = 1e6) -> Tensor:
    """An input that nearly reaches the bound: ``gamma * w``, large, with the sign of the offset.

    >>> import torch
    >>> norm = Norm(torch.ones(4).double(), torch.zeros(4).double(), centred=False, eps=1e-5)
    >>> w = torch.tensor([3.0, 0, 0, 4.0]).double()
    >>> bool((norm(worst_input(norm, w)) @ w - reach(norm, w)).abs() < 1e-9)
    True
    """
    direction = norm.gain * w
    if norm.centred:
        direction = direction - direction.mean()
    sign = -1.0 if float(norm.shift @ w) + b < 0 else 1.0
    return sign * size * direction / direction.norm()
