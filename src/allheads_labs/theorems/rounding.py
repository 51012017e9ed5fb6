r"""How far rounding can move what heads write: an a-priori bound, to first order.

With unit roundoff u, a sum of n products is off by at most ``n u`` times the sum of their absolute values, and rounding
the weights counts as one more product. So, with hats for the same formulas in absolute values,

    score      off by  delta = (2 (d_model + 2) + d_head + 3) u s^,   s^ the largest scale q^ k^ + |offset| of a row
    pattern p  off by  `moved` (p, delta) + (keys + 4) u p
    output     off by  sum_h that v^ |W_O|  and  (d_model + keys + heads d_head + 6) u sum_h p v^ |W_O|

A hundredth is added for what is of second order.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allheads.pure.runner import Heads, patterns, scores, values


def rounding(
    x: Float[Tensor, "pos d_model"], heads: Heads, mask: Bool[Tensor, "head query key"], dtype: torch.dtype
) -> Float[Tensor, "pos d_model"]:
    """Bound on ``|attend(x, heads, mask)`` in ``dtype`` less the same in exact arithmetic``|``, for float64 arguments
    and heads that do not rotate.

    >>> W = torch.eye(2, dtype=torch.float64)[:, :, None]
    >>> heads = Heads(W_V=W, W_O=W.mT)
    >>> bool(rounding(torch.ones(1, 2).double(), heads, torch.ones(1, 1, 1).bool(), torch.float64).max() < 1e-14)
    True
    """
    unit = torch.finfo(dtype).eps / 2
    n, d_head, d_model = heads.W_O.shape
    keys = len(x) + heads.tokens
    size = heads.mapped(torch.abs)
    offsets = heads.bias_offsets
    if offsets is not None:
        size = replace(size, bias_offsets=offsets.abs().masked_fill(offsets == -torch.inf, 0.0))
    delta = (2 * (d_model + 2) + d_head + 3) * unit * scores(x.abs(), size).masked_fill(~mask, 0.0).amax(-1)
    p = patterns(x, heads, mask)
    off = moved(p, delta[..., None]) + (d_model + 2 * keys + n * d_head + 10) * unit * p
    return 1.01 * torch.einsum("hqk,hke,hed->qd", off, values(x.abs(), size), size.W_O)


def moved(p: Tensor, delta: Tensor | float) -> Tensor:
    """How far a softmax entry can move when every score moves by at most delta: the worst is p up and the rest down.

    >>> moved(torch.tensor(0.5), 1e9).item(), round(moved(torch.tensor(0.5), 0.1).item(), 4)
    (0.5, 0.0498)
    """
    shrink = torch.exp(torch.as_tensor(-2.0 * delta, dtype=p.dtype))
    gap = p * (1 - p) * (1 - shrink)
    tiny = torch.finfo(p.dtype).tiny
    return torch.maximum(gap / (p + (1 - p) * shrink).clamp_min(tiny), gap / (p * shrink + (1 - p)).clamp_min(tiny))
