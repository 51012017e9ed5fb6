r"""What sublayers write into the stream and read from it, as thin factors of norm 1.

A matrix is replaced by rows ``M [rank d_model]`` that give the same norms: for every X

    a neuron's write         ||w_out X||            rank 1
    a head's write           ||W_V W_O X||          R W_O, with W_V = Q R
    a neuron's read          ||X w||                rank 1: its query, or the value of a gated neuron
    a head's read by V       ||X W_V W_O||          (W_V R^T)^T, with W_O^T = Q R
    a head's read by Q       ||X W_Q R W_K^T||      (W_Q S)^T, with S S the sum over offsets of R W_K^T W_K R^T
    a head's read by K       the same with Q and K exchanged

so that a composition score is ``||M_write M_read^T||_F``. Weights that read have the gain of their norm folded in, and
behind LayerNorm both sides are centred: the mean of the stream is not seen. Biases are left out, as in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import read_attention
from allheads.twin.wiring import ResidualBranch, Wiring, rotated
from allheads.weights.baseline import peakedness
from allheads.weights.vocabulary import written

Writer = Literal["neuron", "head"]
Reader = Literal["Q", "K", "V", "query", "value"]
#: Numbers in the factors of the reads that are compared at a time: 256 MB in float32.
GROUP = 2**26


@dataclass(frozen=True)
class Factors:
    """The matrices of one sublayer, of norm 1; one that is zero stays zero.

    ``depth`` is how many sublayers have written to the stream before this one, ``peaks`` how peaked each spectrum is.
    """

    kind: Literal["A", "N"]
    layer: int
    depth: int
    peaks: Float[Tensor, " matrix"]
    M: Float[Tensor, "matrix rank d_model"]

    def label(self, index: int) -> str:
        """The head or neuron that a matrix belongs to."""
        return f"L{self.layer}.{self.kind}{index}"


def writes(wiring: Wiring, writer: Writer, layer: int) -> Factors:
    """What the neurons or heads of a layer write."""
    if writer == "neuron":
        sublayer, M = wiring.neurons[layer], _neurons(wiring, layer, "W_O")[:, None]
        return _normalised("N", layer, sublayer, _seen(wiring, written(sublayer, M)))
    sublayer, read = wiring.attention[layer], read_attention(wiring.twin, layer)
    root = torch.linalg.qr(_folded(sublayer, read.W_V), mode="r").R
    return _normalised("A", layer, sublayer, root @ _seen(wiring, written(sublayer, _wide(read.W_O))))


def reads(wiring: Wiring, reader: Reader, layer: int, offsets: Sequence[int]) -> Factors:
    """What the neurons of a layer read by query or value, or its heads by Q, K or V; ``offsets`` are for Q and K."""
    if reader in ("query", "value"):
        sublayer = wiring.neurons[layer]
        W = _neurons(wiring, layer, "W_Q" if reader == "query" else "W_V").T[None]
        return _normalised("N", layer, sublayer, _folded(sublayer, W)[0].T[:, None])
    sublayer, read = wiring.attention[layer], read_attention(wiring.twin, layer)
    if reader == "V":
        out = _seen(wiring, written(sublayer, _wide(read.W_O)))
        M = _folded(sublayer, read.W_V) @ torch.linalg.qr(out.mT, mode="r").R.mT
    else:
        queries, keys = (_folded(sublayer, W) for W in (read.W_Q, read.W_K))
        # Seen from a key, queries are turned the other way.
        sign = -1 if reader == "Q" else 1
        mine, other = (queries, keys) if reader == "Q" else (keys, queries)
        M = mine @ _root(other, read.rotary, [sign * offset for offset in offsets])
    return _normalised("A", layer, sublayer, M.mT)


def grouped_reads(wiring: Wiring, reader: Reader, offsets: Sequence[int]) -> Iterator[list[Factors]]:
    """The reads of all layers, as many layers at a time as `GROUP` numbers hold."""
    group: list[Factors] = []
    for layer in range(len(wiring.twin.banks)):
        new = reads(wiring, reader, layer, offsets)
        if group and sum(read.M.numel() for read in [*group, new]) > GROUP:
            yield group
            group = []
        group.append(new)
    yield group


def seen_dimensions(wiring: Wiring) -> int:
    """Dimensions of the stream that readers see."""
    return wiring.twin.cfg.d_model - _centred(wiring)


def require_values(wiring: Wiring, layers: Sequence[int]) -> None:
    """Raises `AllHeadsError` if a layer writes something else than values carried along patterns."""
    if other := [layer for layer in layers if layer in wiring.unread_values]:
        raise AllHeadsError("heads that write pattern x W_V W_O", f"others in layers {other}", "Not supported.")


def require_scores(wiring: Wiring, layers: Sequence[int]) -> None:
    """Raises `AllHeadsError` if the scores of a layer are not ``x W_Q R W_K^T x^T``."""
    if other := [layer for layer in layers if layer in wiring.unread_scores]:
        raise AllHeadsError(
            "scores that are x W_Q R W_K^T x^T",
            f"others in layers {other}: norms of queries, ALiBi, or rotary of another kind",
            "Values can be read: '->V'.",
        )


def checked_offsets(offsets: Sequence[int]) -> list[int]:
    """How many positions a key is before its query, one or several; `AllHeadsError` for anything else."""
    numbers = list(offsets) if isinstance(offsets, Sequence) else []
    if not numbers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise AllHeadsError("offsets such as (0,) or range(64)", repr(offsets), "Positions from the key to the query.")
    return numbers


def _normalised(kind: Literal["A", "N"], layer: int, sublayer: ResidualBranch, M: Tensor) -> Factors:
    size = M.norm(dim=(1, 2), keepdim=True)
    M = M / size.masked_fill(size == 0, 1.0)
    peaks = M.new_ones(len(M)) if M.shape[1] == 1 else peakedness(M)
    return Factors(kind, layer, sublayer.depth, peaks, M)


def _root(W: Tensor, rotary: Tensor | None, offsets: Sequence[int]) -> Float[Tensor, "head d_head d_head"]:
    """The root of the sum over offsets of ``R W^T W R^T``: only its direction counts."""
    gram = W.mT.double() @ W.double()
    if rotary is not None:
        turns = (rotated(rotated(gram, [offset], rotary).mT, [offset], rotary) for offset in offsets)
        gram = sum(turns, torch.zeros_like(gram))
    values, vectors = torch.linalg.eigh(gram)
    return ((vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT).to(W)


def _neurons(wiring: Wiring, layer: int, name: str) -> Float[Tensor, "neuron d_model"]:
    bank = wiring.twin.banks[layer]
    bank.require_shared("neurons whose heads share their weights", f"L{layer}")
    weight = getattr(bank.weights(), name)
    if weight is None:
        raise AllHeadsError("gated neurons, for '->value'", f"plain ones in L{layer}", "Theirs is '->query'.")
    return _wide(weight[0].detach())


def _centred(wiring: Wiring) -> bool:
    """Is the mean of the stream invisible to every reader?"""
    sublayers = [*wiring.attention, *wiring.neurons]
    return all(sublayer.before is not None and sublayer.before.centred for sublayer in sublayers)


def _seen(wiring: Wiring, M: Tensor) -> Tensor:
    """The part of a write that readers see."""
    return M - M.mean(-1, keepdim=True) if _centred(wiring) else M


def _folded(sublayer: ResidualBranch, W: Float[Tensor, "head d_model out"]) -> Float[Tensor, "head d_model out"]:
    W = _wide(W)
    if sublayer.before is None:
        return W
    return torch.stack([sublayer.before.folded(head) for head in W])


def _wide(W: Tensor) -> Tensor:
    return W.to(torch.promote_types(W.dtype, torch.float32))
