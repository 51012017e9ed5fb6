r"""What sublayers write into the stream and read from it, as thin factors of norm 1.

A matrix is replaced by rows ``M [rank d_model]`` that give the same norms: for every X

    a neuron's write         ||w_out X||            rank 1
    a head's write           ||W_V W_O X||          R W_O, with W_V = Q R
    a neuron's read          ||X w||                rank 1: its query, or the value of a gated neuron
    a head's read by V       ||X W_V W_O||          (W_V R^T)^T, with W_O^T = Q R
    a head's read by Q       ||X W_Q R W_K^T||      (W_Q S)^T, with S S the mean over offsets of R W_K^T W_K R^T
    a head's read by K       the same with Q and K exchanged

so that a composition score is ``||M_write M_read^T||_F``. Weights that read have the gain of their norm folded in, and
behind LayerNorm both sides are centred: the mean of the stream is not seen. Biases are left out, as in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import read_attention
from allheads.models.bridge import TwinBridge
from allheads.models.wiring import Sublayer, Wiring, turned
from allheads.weights.vocabulary import written

Writer = Literal["neuron", "head"]
Reader = Literal["Q", "K", "V", "query", "value"]


@dataclass(frozen=True)
class Factors:
    """The matrices of one sublayer, as factors of norm 1; one that is zero stays zero."""

    layer: int
    kind: Literal["A", "N"]
    #: Sublayers that have written to the stream before.
    place: int
    M: Float[Tensor, "matrix rank d_model"]

    def label(self, index: int) -> str:
        """The head or neuron that a matrix belongs to."""
        return f"L{self.layer}.{self.kind}{index}"


@dataclass(frozen=True)
class Streams:
    """A twin as writes into its stream and reads from it, layer by layer; ``offsets`` are for reads by Q and K."""

    twin: TwinBridge
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
        return self.twin.cfg.d_model - self.centred

    def writes(self, writer: Writer, layer: int) -> Factors:
        """What the neurons or heads of a layer write."""
        if writer == "neuron":
            sublayer, M = self.wiring.neurons[layer], self._neurons(layer, "W_O")[:, None]
            return Factors(layer, "N", sublayer.place, _unit(self._seen(written(sublayer, M))))
        sublayer, read = self.wiring.attention[layer], read_attention(self.twin, layer)
        root = torch.linalg.qr(_folded(sublayer, read.W_V), mode="r").R
        return Factors(layer, "A", sublayer.place, _unit(root @ self._seen(written(sublayer, _wide(read.W_O)))))

    def reads(self, reader: Reader, layer: int) -> Factors:
        """What the neurons of a layer read by query or value, or its heads by Q, K or V."""
        if reader in ("query", "value"):
            sublayer = self.wiring.neurons[layer]
            W = self._neurons(layer, "W_Q" if reader == "query" else "W_V").T[None]
            return Factors(layer, "N", sublayer.place, _unit(_folded(sublayer, W)[0].T[:, None]))
        sublayer, read = self.wiring.attention[layer], read_attention(self.twin, layer)
        if reader == "V":
            out = self._seen(written(sublayer, _wide(read.W_O)))
            M = _folded(sublayer, read.W_V) @ torch.linalg.qr(out.mT, mode="r").R.mT
        else:
            queries, keys = (_folded(sublayer, W) for W in (read.W_Q, read.W_K))
            # Seen from a key, queries are turned the other way.
            sign = -1 if reader == "Q" else 1
            mine, other = (queries, keys) if reader == "Q" else (keys, queries)
            M = mine @ self._root(other, read.rotary, sign)
        return Factors(layer, "A", sublayer.place, _unit(M.mT))

    def reaching(self, writer: Writer, reads: Factors) -> list[int]:
        """The layers whose neurons or heads have written when a read takes place."""
        layers = range(len(self.twin.banks))
        return [layer for layer in layers if 2 * layer + (writer == "neuron") < reads.place]

    def _root(self, W: Tensor, rotary: Tensor | None, sign: int) -> Float[Tensor, "head d_head d_head"]:
        """The root of the mean over offsets of ``R W^T W R^T``."""
        gram = W.mT.double() @ W.double()
        if rotary is not None:
            turns = (turned(turned(gram, [sign * o], rotary).mT, [sign * o], rotary) for o in self.offsets)
            gram = sum(turns, torch.zeros_like(gram)) / len(self.offsets)
        values, vectors = torch.linalg.eigh(gram)
        return ((vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT).to(W)

    def _neurons(self, layer: int, name: str) -> Float[Tensor, "neuron d_model"]:
        bank = self.twin.banks[layer]
        if bank.own is not None:
            raise AllHeadsError("neurons whose heads share their weights", f"edited heads in L{layer}", "Read before.")
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
    found = list(offsets) if isinstance(offsets, Sequence) else []
    if not found or not all(isinstance(each, int) and each >= 0 for each in found):
        raise AllHeadsError("offsets such as (0,) or range(64)", repr(offsets), "Positions from the key to the query.")
    return found


def _folded(sublayer: Sublayer, W: Float[Tensor, "head d_model out"]) -> Float[Tensor, "head d_model out"]:
    W = _wide(W)
    if sublayer.before is None:
        return W
    return torch.stack([sublayer.before.folded(each) for each in W])


def _wide(W: Tensor) -> Tensor:
    return W.to(torch.promote_types(W.dtype, torch.float32))


def _unit(M: Float[Tensor, "matrix rank d_model"]) -> Float[Tensor, "matrix rank d_model"]:
    size = M.norm(dim=(1, 2), keepdim=True)
    return M / size.masked_fill(size == 0, 1.0)
