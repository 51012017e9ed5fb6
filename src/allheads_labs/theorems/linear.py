r"""**Any row-wise linear map is a layer of heads that attend to themselves.**

*Claim.* ``x -> x M + b`` for ``M [d_in d_out]`` takes ``ceil(min(d_in, d_out) / d_head)`` heads (and one for b).

*Construction.* A head that sees its own token only has the pattern 1, whatever its scores, and writes ``x W_V W_O``.
The columns of the identity, d_head at a time, are the ``W_V`` of the heads and the same rows of M their ``W_O`` (or,
where M has fewer columns than rows, columns of M and rows of the identity).

*Bound.* Exact; with d_head at least the smaller side, one head. No fewer than ``rank(M) / d_head`` heads can do it,
since each head adds a matrix of rank d_head at most: for M of full rank the number is the least possible.

*Source.* Huben & Morris 2023.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from allheads.pure.runner import Heads


def linear_heads(
    M: Float[Tensor, "d_model d_model"], bias: Float[Tensor, " d_model"] | None = None, *, d_head: int
) -> list[Heads]:
    """``x M + bias`` by heads that attend to themselves; rows and columns of zeros cost nothing.

    >>> from allheads.pure.runner import allowed, attend
    >>> M, x = torch.randn(5, 5, generator=torch.manual_seed(0)), torch.randn(3, 5)
    >>> (heads,) = linear_heads(M, d_head=2)
    >>> len(heads.W_O), torch.allclose(attend(x, heads, allowed(heads, 3)), x @ M, atol=1e-5)
    (3, True)
    """
    rows, columns = M.any(1).nonzero()[:, 0], M.any(0).nonzero()[:, 0]
    identity = torch.eye(len(M), dtype=M.dtype)
    if len(rows) <= len(columns):
        inner, outer = identity[:, rows], M[rows]
    else:
        inner, outer = M[:, columns], identity[columns]
    spare = -inner.shape[1] % d_head
    W_V = F.pad(inner, (0, spare)).unflatten(1, (-1, d_head)).movedim(1, 0)
    W_O = F.pad(outer, (0, 0, 0, spare)).unflatten(0, (-1, d_head))
    return [Heads(W_O=W_O, W_V=W_V), *constant_head(bias)]


def constant_head(bias: Float[Tensor, " d_model"] | None) -> list[Heads]:
    """A head that writes the same vector everywhere: it attends to itself, and its value is 1."""
    return [] if bias is None else [Heads(W_O=bias[None, None], b_V=bias.new_ones(1, 1))]
