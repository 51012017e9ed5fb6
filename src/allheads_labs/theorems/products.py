r"""**Products of gates are gates.**

*Claim.* ``P(s) Q(t)`` for gates P and Q of two different readings s and t of the stream is the pattern of one head with
``d_head = 2`` and ``(A + 1)(B + 1) - 1`` bias tokens.

*Construction.* ``(1 + sum_i e^{s_i}) (1 + sum_j e^{r_j})`` is 1 plus every ``e^{s_i}``, every ``e^{r_j}`` and every
``e^{s_i + r_j}``: a bias token for each term but the first. The query has the components s and t, the keys the slopes
of both.

*Bound.* Exact, plus rounding. By induction every product of logistic functions of linear readings is one head.

*Source.* Ours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.gates import Gate
from allheads.pure.runner import Heads


def product_head(
    first: Gate, second: Gate, readings: Float[Tensor, "d_model 2"], value: Float[Tensor, " d_model"]
) -> Heads:
    """A head that writes ``P(x . readings[:, 0]) Q(x . readings[:, 1]) value``.

    >>> from allheads.pure.runner import allowed, attend
    >>> logistic, x = Gate((0.0,), (1.0,)), torch.tensor([[1.0, -2.0]])
    >>> head = product_head(logistic, logistic, torch.eye(2), torch.ones(2))
    >>> torch.allclose(attend(x, head, allowed(head, 1)), x[0].sigmoid().prod().expand(1, 2))
    True
    """
    terms = [
        (a + b, (-k, -m))
        for a, k in [(0.0, 0.0), *zip(first.offsets, first.slopes, strict=True)]
        for b, m in [(0.0, 0.0), *zip(second.offsets, second.slopes, strict=True)]
    ][1:]
    return Heads(
        W_Q=readings[None],
        b_V=torch.tensor([[1.0, 0.0]]).to(readings),
        W_O=torch.stack([value, torch.zeros_like(value)])[None],
        bias_offsets=torch.tensor([[offset for offset, _ in terms]], dtype=readings.dtype),
        bias_keys=torch.tensor([[key for _, key in terms]], dtype=readings.dtype),
    )
