r"""How much two matrices compose by chance.

The composition score of a write W and a read R in a stream of d dimensions is ``||W R||_F / (||W||_F ||R||_F)``. Turn
one of them at random, by a rotation that is uniform over all of them, and keep both spectra. With ``a`` and ``b`` the
sums of the squared shares of their squared singular values (1 for rank one, 1/r for r equal ones), the squared score
has

    mean 1/d,        variance 2 (a - 1/d) (b - 1/d) / ((d - 1) (d + 2)),

exactly. The Beta distribution with these two moments gives the mean of the score itself: exactly where both have rank
one, and within a thousandth of it for every spectrum that `tests/weights/test_baseline.py` samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: The shape at which the score hardly varies: its mean is below its root mean square by 1e-5 of it.
_SHARP = 1e4


def baseline(a: Float[Tensor, "*pair"], b: Float[Tensor, "*pair"], d: int) -> Float[Tensor, "*pair"]:
    r"""The mean composition score of matrices turned at random, from the peakedness of their spectra.

    ``sqrt(1/d)`` at most; of two vectors, whose score is a cosine, about ``sqrt(2 / (pi d))``.

    >>> one = torch.ones(1)
    >>> round(float(baseline(one, one, 1000) * (torch.pi * 1000 / 2) ** 0.5), 3)
    1.0
    >>> round(float(baseline(one, one / 64, 1000) * 1000**0.5), 3)
    0.996
    """
    # Beta(s, s (d - 1)) has mean 1/d and variance (d - 1) / (d^2 (s d + 1)).
    s = (((d - 1) / (d**2 * variance(a, b, d)) - 1) / d).clamp(max=_SHARP)
    return torch.exp(torch.lgamma(s + 0.5) - torch.lgamma(s) + torch.lgamma(s * d) - torch.lgamma(s * d + 0.5))


def variance(a: Float[Tensor, "*pair"], b: Float[Tensor, "*pair"], d: int) -> Float[Tensor, "*pair"]:
    """That of the squared score, over all rotations."""
    return 2 * ((a.double() - 1 / d) * (b.double() - 1 / d)).clamp_min(0) / ((d - 1) * (d + 2))


def peakedness(M: Float[Tensor, "matrix rank d_model"]) -> Float[Tensor, " matrix"]:
    """The sum of the squared shares of the squared singular values, of matrices of norm 1; 1 for rank one."""
    return (M @ M.mT).square().sum((1, 2))
