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
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import Attention, rotated
from allheads.models.norms import Norm
from allheads.twin.wiring import ResidualBranch, Wiring
from allheads.weights.baseline import peakedness
from allheads.weights.vocabulary import written

Writer = Literal["neuron", "head"]
Reader = Literal["Q", "K", "V", "query", "value"]
#: Numbers in the factors of the reads that are compared at a time: 128 MB in float32, and as much behind norms.
GROUP = 2**25


@dataclass(frozen=True)
class Factors:
    """The matrices of one sublayer, of norm 1; one that is zero stays zero. ``peaks``: how peaked each spectrum is."""

    branch: ResidualBranch
    peaks: Float[Tensor, " matrix"]
    M: Float[Tensor, "matrix rank d_model"]

    def label(self, index: int) -> str:
        """The head or neuron that a matrix belongs to."""
        return str(self.branch.site.label(index))

    def through(self, norms: Sequence[Norm]) -> Factors:
        """What reads the stream before these norms as this reads behind them; scales and shifts are left out."""
        M = self.M
        for norm in reversed(norms):
            M = norm.centre(norm.gain.to(M) * M)
        return normalised(self.branch, M)


def writes(wiring: Wiring, branch: ResidualBranch) -> Factors:
    """What the neurons or heads of a sublayer write."""
    if branch.site.kind == "N":
        return normalised(branch, _seen(wiring, written(branch, _neurons(branch, "W_O")[:, None])))
    read = require_attention(branch)
    root = torch.linalg.qr(_folded(branch, read.directions("V")), mode="r").R
    return normalised(branch, root @ _seen(wiring, written(branch, _wide(read.W_O))))


def reads(wiring: Wiring, reader: Reader, branch: ResidualBranch, offsets: Sequence[int]) -> Factors:
    """What neurons read by query or value, or heads by Q, K or V, behind their norms; ``offsets`` are for Q and K."""
    if reader in ("query", "value"):
        return normalised(branch, _neurons(branch, "W_Q" if reader == "query" else "W_V")[:, None])
    read = require_attention(branch)
    if reader == "V":
        out = _seen(wiring, written(branch, _wide(read.W_O)))
        M = read.directions("V") @ torch.linalg.qr(out.mT, mode="r").R.mT
    else:
        # Seen from a key, queries are turned the other way.
        sign, other = (-1, "K") if reader == "Q" else (1, "Q")
        turns = [sign * offset for offset in offsets]
        M = read.directions(reader) @ _root(_folded(branch, read.directions(other)), read, turns)
    return normalised(branch, M.mT)


def grouped_reads(
    wiring: Wiring, reader: Reader, branches: Sequence[ResidualBranch], offsets: Sequence[int]
) -> Iterator[list[Factors]]:
    """The reads of these sublayers, as many at a time as `GROUP` numbers hold."""
    group: list[Factors] = []
    for branch in branches:
        new = reads(wiring, reader, branch, offsets)
        if group and sum(read.M.numel() for read in [*group, new]) > GROUP:
            yield group
            group = []
        group.append(new)
    yield group


def seen_dimensions(wiring: Wiring) -> int:
    """Dimensions of the stream that readers see."""
    return wiring.twin.cfg.d_model - _centred(wiring)


def require_attention(branch: ResidualBranch) -> Attention:
    """The weights of its heads. Raises `AllHeadsError` where they are not there."""
    if branch.attention is None:
        raise AllHeadsError(
            "attention with W_Q, W_K, W_V and W_O of each head",
            f"another kind in {branch.name}, or keys and values of another layer",
            "Not supported.",
        )
    return branch.attention


def require_values(branches: Sequence[ResidualBranch]) -> None:
    """Raises `AllHeadsError` if a sublayer writes something else than values carried along patterns.

    >>> import allheads as ah
    >>> require_values(ah.weights.read_wiring(twin).of_kind(False))
    """
    for branch in branches:
        require_attention(branch)
    if other := [branch.name for branch in branches if not branch.values]:
        raise AllHeadsError("heads that write pattern x W_V W_O", f"others in layers {', '.join(other)}", "Not read.")


def require_scores(branches: Sequence[ResidualBranch]) -> None:
    """Raises `AllHeadsError` if the scores of a sublayer are not ``x W_Q R W_K^T x^T``, norms and positions aside.

    >>> import allheads as ah
    >>> require_scores(ah.weights.read_wiring(twin).of_kind(False))
    """
    for branch in branches:
        require_attention(branch)
        if not branch.scores:
            others = [branch.name for branch in branches if not branch.scores]
            raise scores_differ(branch, ", ".join(others))


def scores_differ(branch: ResidualBranch, where: str = "") -> AllHeadsError:
    """What is wrong with scores that cannot be read."""
    return AllHeadsError(
        "scores that are x W_Q R W_K^T x^T",
        f"others in {where or branch.name}: positions that are multiplied with content, or rotary of another kind",
        "Values can be read: '->V'.",
    )


def checked_offsets(offsets: Sequence[int]) -> list[int]:
    """How many positions a key is before its query, one or several; `AllHeadsError` for anything else."""
    numbers = list(offsets) if isinstance(offsets, Sequence) else []
    if not numbers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise AllHeadsError("offsets such as (0,) or range(64)", repr(offsets), "Positions from the key to the query.")
    return numbers


def normalised(branch: ResidualBranch, M: Tensor) -> Factors:
    """Matrices brought to norm 1."""
    size = M.norm(dim=(1, 2), keepdim=True)
    M = M / size.masked_fill(size == 0, 1.0)
    return Factors(branch, M.new_ones(len(M)) if M.shape[1] == 1 else peakedness(M), M)


def _root(W: Tensor, read: Attention, offsets: Sequence[int]) -> Float[Tensor, "head d_head d_head"]:
    """The root of the sum over offsets of ``R W^T W R^T``: only its direction counts."""
    gram = W.mT.double() @ W.double()
    if read.rotary is not None:
        turn = partial(rotated, rotary=read.rotary, interleaved=read.interleaved)
        turns = (turn(turn(gram, [offset]).mT, [offset]) for offset in offsets)
        gram = sum(turns, torch.zeros_like(gram))
    values, vectors = torch.linalg.eigh(gram)
    return ((vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT).to(W)


def _neurons(branch: ResidualBranch, name: str) -> Float[Tensor, "neuron d_model"]:
    assert branch.bank is not None
    branch.bank.require_shared("neurons whose heads share their weights", branch.name)
    weight = getattr(branch.bank.weights(), name)
    if weight is None:
        raise AllHeadsError("gated neurons, for '->value'", f"plain ones in {branch.name}", "Theirs is '->query'.")
    return _wide(weight[0].detach())


def _centred(wiring: Wiring) -> bool:
    """Is the mean of the stream invisible to every reader?"""
    return all(branch.before is not None and branch.before.centred for branch in wiring.branches.values())


def _seen(wiring: Wiring, M: Tensor) -> Tensor:
    """The part of a write that readers see."""
    return M - M.mean(-1, keepdim=True) if _centred(wiring) else M


def _folded(branch: ResidualBranch, W: Float[Tensor, "head d_model out"]) -> Float[Tensor, "head d_model out"]:
    W = _wide(W)
    if branch.before is None:
        return W
    return torch.stack([branch.before.folded(head) for head in W])


def _wide(W: Tensor) -> Tensor:
    return W.to(torch.promote_types(W.dtype, torch.float32))
