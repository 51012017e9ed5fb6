r"""**Ordinary heads need not notice the bias tokens.**

*Claim.* On a stream with b bias positions, the heads of an ordinary attention layer write at the real positions what
they write without them, and nothing at the bias positions.

*Construction.* The one-hot block hides bias positions from real ones like any other mask. A bias position sees only
itself; what the head reads in its stream is taken away by the rows of the one-hot block, so that its value is 0.

*Bound.* That of the mask, times the largest value (`allheads_labs.theorems.masks`).

*Source.* Huben & Morris 2023.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.pure.runner import Heads, allowed, attend, in_weights


def beside_bias_tokens(
    x: Float[Tensor, "pos d_model"], heads: Heads, *, bias_tokens: int, omega: float
) -> Float[Tensor, "all_pos d_model"]:
    """What the heads write on x with bias positions behind it, without any mask.

    >>> x = torch.randn(4, 6, generator=torch.manual_seed(0)).double()
    >>> W = 0.3 * torch.randn(2, 6, 3).double()
    >>> heads = Heads(W_Q=W, W_K=W.flip(0), W_V=W, W_O=W.mT, mask="causal")
    >>> out = beside_bias_tokens(x, heads, bias_tokens=2, omega=80.0)
    >>> bool((out[:4] - attend(x, heads, allowed(heads, 4))).abs().max() < 1e-11), out[4:].abs().max().item() < 1e-11
    (True, True)
    """
    positions, rest = len(x) + bias_tokens, x.new_zeros(bias_tokens, x.shape[1])
    stream = torch.cat([torch.cat([x, rest]), torch.eye(positions).to(x)], 1)
    return attend(stream, in_weights(heads, allowed(heads, len(x)), omega, rest))[:, : x.shape[1]]
