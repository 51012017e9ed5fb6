r"""memory: what a head would know if it moved tokens along the gradient of its potential, and how much of it that is.

With ``A = W_K W_Q^T`` (rows on the left, biases and rotary aside) the gradient of the potential is ``scale xbar A``,
where xbar is the mean input over the pattern, and the head writes ``xbar W_V W_O``. It writes a linear image of its
gradient, ``xbar A M``, for ``M = A^+ W_V W_O``; and ``A A^+`` projects on the span of W_K, so that the share of OV
which M explains,

    share = ||P_K W_V W_O||_F^2 / ||W_V W_O||_F^2,

is 1 only where what OV reads lies in what keys are made of. A head drawn at random has ``d_head / d_model`` on average,
exactly and for every spectrum. A rotation between W_K and W_Q^T changes M and not the share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads import AllHeadsError, Label, TwinBridge
from allheads.twin.prompt import require_twin
from allheads.weights import Attention, Wiring, read_attention, read_wiring, require_scores, require_values


@dataclass(frozen=True)
class Memory:
    """``M = left @ right`` in float64, of rank d_head at most, and the ``share`` of OV that it explains.

    ``chance`` is the share that random keys of the same rank explain on average; ``condition`` is that of ``W_K W_Q^T``
    on the span of its keys: how much M magnifies what little the gradient says.
    """

    label: str
    left: Float[Tensor, "d_model rank"]
    right: Float[Tensor, "rank d_model"]
    constant: Float[Tensor, " d_model"]
    scale: float
    share: float
    chance: float
    condition: float

    def write(self, gradient: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What M makes of the gradient of the potential, keys held: the head's write where ``share`` is 1.

        Biases are taken care of; rotary is not: M is that of a key at the position of its query.
        """
        return gradient.to(self.left) / self.scale @ self.left @ self.right + self.constant


@torch.no_grad()
def memory(twin: TwinBridge, label: str | Label) -> Memory:
    r"""The matrix M = (QK)^+ OV of an ordinary head, and the share of OV that it explains.

    Orientation is that of TransformerLens, rows on the left: ``W_K W_Q^T M`` is the part of ``W_V W_O`` that reads the
    span of W_K, and nothing else of it can be had from the gradient. Seen with columns on the left, M is OV (QK)^+.

    Args:
        twin: from `ah.convert`.
        label: an ordinary head, ``L3.A5``.

    Returns:
        A `Memory`, in thin factors; its share is exact in float64 up to 1e-12.

    Raises:
        AllHeadsError: an unknown label; a neuron head, whose keys are none of the stream, so that its share is 0; a
            layer whose scores or values are not read: see `ah.weights.composition`.

    Source: the reading of attention as motion in a potential, M = V (Q^T K)^-1 (T. Lou 2023), with a pseudo-inverse,
    as ``Q^T K`` has rank d_head < d_model and no inverse.

    >>> found = memory(twin, "L3.A5")  # doctest: +SKIP
    >>> found.share, found.chance  # doctest: +SKIP
    """
    head = require_twin(twin).index.heads(label)[0]
    if head.label.kind != "A":
        remedy = "Keys of a neuron head are bias tokens: its gradient says nothing of OV."
        raise AllHeadsError("an ordinary head", str(label), remedy)
    return _memory(read_wiring(twin), twin, head.label.layer, head.number)


@torch.no_grad()
def memories(twin: TwinBridge, layers: Iterable[int]) -> Iterator[Memory]:
    """Those of all ordinary heads of some layers; raises as `memory` does."""
    wiring = read_wiring(twin)
    for layer in layers:
        for number in range(len(read_attention(twin, layer).W_Q)):
            yield _memory(wiring, twin, layer, number)


def key_share(
    W_K: Float[Tensor, "*head d_model d_head"],
    W_V: Float[Tensor, "*head d_model d_head"],
    W_O: Float[Tensor, "*head d_head d_model"],
) -> Float[Tensor, "*head"]:
    """The share of ``W_V W_O`` that reads the span of ``W_K``.

    ``||P X||_F`` is ``||U^T X||_F`` for an orthonormal U, and ``||X W_O||_F`` is ``||X R^T||_F`` with ``W_O^T = Q R``.

    >>> eye = torch.eye(4).double()
    >>> float(key_share(eye[:, :2], eye[:, 1:3], eye[:2]))
    0.5
    """
    root = torch.linalg.qr(W_O.mT).R.mT
    value = W_V @ root
    return (_span(W_K).mT @ value).square().sum((-2, -1)) / value.square().sum((-2, -1))


def _span(W: Float[Tensor, "*head d_model d_head"]) -> Float[Tensor, "*head d_model d_head"]:
    """An orthonormal basis of the columns; directions of no size are zero."""
    U, sizes, _ = torch.linalg.svd(W, full_matrices=False)
    return U * (sizes > _negligible(sizes, W.shape[-2]))[..., None, :]


def _negligible(sizes: Tensor, d_model: int) -> Tensor:
    """Below this they count as zero, as in numpy.linalg.pinv."""
    return sizes[..., :1] * d_model * torch.finfo(sizes.dtype).eps


def _memory(wiring: Wiring, twin: TwinBridge, layer: int, number: int) -> Memory:
    branch = wiring.attention_branch(layer)
    require_scores([branch])
    require_values([branch])
    if branch.attention is not None and (branch.attention.norm_Q or branch.attention.norm_K):
        raise AllHeadsError(
            "scores that are x W_Q R W_K^T x^T",
            f"norms of queries and keys in {branch.name}",
            "Its potential has no one matrix.",
        )
    read = read_attention(twin, layer)
    W_Q, W_K, W_V, W_O = (getattr(read, name)[number].double() for name in ("W_Q", "W_K", "W_V", "W_O"))
    keys, queries = torch.linalg.qr(W_K), torch.linalg.qr(W_Q)
    # W_K W_Q^T is keys.Q core queries.Q^T, and its pseudo-inverse that of the core between the same bases.
    U, sizes, V = torch.linalg.svd(keys.R @ queries.R.mT)
    inverse = torch.where(sizes > _negligible(sizes, len(W_K)), 1 / sizes, 0.0)
    left = queries.Q @ (V.mT * inverse)
    right = U.mT @ (keys.Q.mT @ W_V) @ W_O
    share = float(key_share(W_K, W_V, W_O))
    chance, condition = W_K.shape[1] / len(W_K), float(sizes[0] / sizes[inverse > 0].min())
    scale = read.scale * read.rotary_scale**2
    label = f"L{layer}.A{number}"
    return Memory(label, left, right, _constant(read, number, left, right), scale, share, chance, condition)


def _constant(read: Attention, number: int, left: Tensor, right: Tensor) -> Float[Tensor, " d_model"]:
    """What biases add to the write: ``b_V W_O``, less what the bias of keys adds through the gradient."""
    constant = torch.zeros_like(right[0])
    if read.b_V is not None:
        constant = constant + read.b_V[number].double() @ read.W_O[number].double()
    if read.b_K is not None:
        constant = constant - read.b_K[number].double() @ read.W_Q[number].double().mT @ left @ right
    return constant
