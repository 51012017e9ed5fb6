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
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
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
    """The matrices of one sublayer, or of several layers one after the other; one that is zero stays zero."""

    kind: Literal["A", "N"]
    #: By matrix: its layer, how many sublayers have written to the stream before, its head or neuron, its peakedness.
    layers: Int[Tensor, " matrix"]
    depths: Int[Tensor, " matrix"]
    numbers: Int[Tensor, " matrix"]
    peaks: Float[Tensor, " matrix"]
    M: Float[Tensor, "matrix rank d_model"]

    @classmethod
    def of(cls, kind: Literal["A", "N"], layer: int, depth: int, M: Float[Tensor, "matrix rank d_model"]) -> Factors:
        """Those of one layer, made of norm 1."""
        size, numbers = M.norm(dim=(1, 2), keepdim=True), torch.arange(len(M))
        M = M / size.masked_fill(size == 0, 1.0)
        peaks = M.new_ones(len(M)) if M.shape[1] == 1 else peakedness(M)
        return cls(kind, torch.full_like(numbers, layer), torch.full_like(numbers, depth), numbers, peaks, M)

    @classmethod
    def joined(cls, several: list[Factors]) -> Factors:
        """Those of several layers, in their order."""
        joint = (torch.cat([getattr(each, name) for each in several]) for name in cls._OF_MATRICES)
        return cls(several[0].kind, *joint)

    def after(self, sublayer: int) -> Factors:
        """Those whose stream holds what a sublayer has written; depths grow with the layers."""
        first = int((self.depths <= sublayer).sum())
        return Factors(self.kind, *(getattr(self, name)[first:] for name in self._OF_MATRICES))

    def label(self, index: int) -> str:
        """The head or neuron that a matrix belongs to."""
        return f"L{int(self.layers[index])}.{self.kind}{int(self.numbers[index])}"

    _OF_MATRICES: ClassVar = ("layers", "depths", "numbers", "peaks", "M")


@dataclass(frozen=True)
class Streams:
    """A twin as writes into its stream and reads from it, layer by layer; ``offsets`` are for reads by Q and K."""

    wiring: Wiring
    offsets: Sequence[int] = (0,)

    @property
    def centred(self) -> bool:
        """Is the mean of the stream invisible to every reader?"""
        sublayers = [*self.wiring.attention, *self.wiring.neurons]
        return all(each.before is not None and each.before.centred for each in sublayers)

    @property
    def d(self) -> int:
        """Dimensions of the stream that readers see."""
        return self.wiring.twin.cfg.d_model - self.centred

    def writes(self, writer: Writer, layer: int) -> Factors:
        """What the neurons or heads of a layer write."""
        if writer == "neuron":
            sublayer, M = self.wiring.neurons[layer], self._neurons(layer, "W_O")[:, None]
            return Factors.of("N", layer, sublayer.depth, self._seen(written(sublayer, M)))
        sublayer, read = self.wiring.attention[layer], read_attention(self.wiring.twin, layer)
        root = torch.linalg.qr(_folded(sublayer, read.W_V), mode="r").R
        return Factors.of("A", layer, sublayer.depth, root @ self._seen(written(sublayer, _wide(read.W_O))))

    def reads(self, reader: Reader, layer: int) -> Factors:
        """What the neurons of a layer read by query or value, or its heads by Q, K or V."""
        if reader in ("query", "value"):
            sublayer = self.wiring.neurons[layer]
            W = self._neurons(layer, "W_Q" if reader == "query" else "W_V").T[None]
            return Factors.of("N", layer, sublayer.depth, _folded(sublayer, W)[0].T[:, None])
        sublayer, read = self.wiring.attention[layer], read_attention(self.wiring.twin, layer)
        if reader == "V":
            out = self._seen(written(sublayer, _wide(read.W_O)))
            M = _folded(sublayer, read.W_V) @ torch.linalg.qr(out.mT, mode="r").R.mT
        else:
            queries, keys = (_folded(sublayer, W) for W in (read.W_Q, read.W_K))
            # Seen from a key, queries are turned the other way.
            sign = -1 if reader == "Q" else 1
            mine, other = (queries, keys) if reader == "Q" else (keys, queries)
            M = mine @ self._root(other, read.rotary, sign)
        return Factors.of("A", layer, sublayer.depth, M.mT)

    def groups(self, reader: Reader) -> Iterator[Factors]:
        """The reads of all layers, as many layers at a time as `GROUP` numbers hold."""
        waiting: list[Factors] = []
        for layer in range(len(self.wiring.twin.banks)):
            new = self.reads(reader, layer)
            size = sum(each.M.numel() for each in waiting)
            if waiting and (size + new.M.numel() > GROUP or new.M.shape[1:] != waiting[0].M.shape[1:]):
                yield Factors.joined(waiting)
                waiting = []
            waiting.append(new)
        yield Factors.joined(waiting)

    def _root(self, W: Tensor, rotary: Tensor | None, sign: int) -> Float[Tensor, "head d_head d_head"]:
        """The root of the sum over offsets of ``R W^T W R^T``: only its direction counts."""
        gram = W.mT.double() @ W.double()
        if rotary is not None:
            turns = (rotated(rotated(gram, [sign * o], rotary).mT, [sign * o], rotary) for o in self.offsets)
            gram = sum(turns, torch.zeros_like(gram))
        values, vectors = torch.linalg.eigh(gram)
        return ((vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT).to(W)

    def _neurons(self, layer: int, name: str) -> Float[Tensor, "neuron d_model"]:
        bank = self.wiring.twin.banks[layer]
        bank.require_shared("neurons whose heads share their weights", f"L{layer}")
        weight = getattr(bank.weights(), name)
        if weight is None:
            raise AllHeadsError("gated neurons, for '->value'", f"plain ones in L{layer}", "Theirs is '->query'.")
        return _wide(weight[0].detach())

    def _seen(self, M: Tensor) -> Tensor:
        """The part of a write that readers see."""
        return M - M.mean(-1, keepdim=True) if self.centred else M


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


def _folded(sublayer: ResidualBranch, W: Float[Tensor, "head d_model out"]) -> Float[Tensor, "head d_model out"]:
    W = _wide(W)
    if sublayer.before is None:
        return W
    return torch.stack([sublayer.before.folded(each) for each in W])


def _wide(W: Tensor) -> Tensor:
    return W.to(torch.promote_types(W.dtype, torch.float32))
