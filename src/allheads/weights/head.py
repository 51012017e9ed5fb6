"""The circuits of an ordinary head through the embeddings: where it looks (QK) and what it carries (OV).

Both are d_vocab x d_vocab matrices of rank d_head. They are kept as two thin factors each, and never built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import Attention, rotated
from allheads.result import Result
from allheads.twin.prompt import one_token, token_texts
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import ResidualBranch, Side, Wiring
from allheads.weights.factors import checked_offsets, require_values, scores_differ
from allheads.weights.top_k import top_pairs
from allheads.weights.vocabulary import TokenPair, TokenValue, extreme_tokens, read_tokens, write_logits

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class HeadCircuit(Result):
    """An ordinary head through the embeddings. Streams are single tokens' embeddings, without positions.

    ``query`` and ``key`` are what the head makes of each token, biases and the scale of the scores included, before
    rotary; ``value`` likewise; ``write`` is what each direction of a value does to the logits, per unit of the final
    norm's scale and less the mean over the vocabulary. ``unread`` says why one is None: Q, K, V or O. A head that
    looks at another stack reads its keys and values there.

    >>> import allheads as ah
    >>> circuit = ah.weights.circuit(twin, "L3.A5", k=3)
    >>> len(circuit.promotes()), -1 <= circuit.copying <= 1
    (3, True)
    """

    label: str
    k: int
    query: Float[Tensor, "d_vocab d_head"] | None
    key: Float[Tensor, "d_vocab d_head"] | None
    value: Float[Tensor, "d_vocab d_head"] | None
    write: Float[Tensor, "d_head d_vocab"] | None
    attention: Attention
    twin: TwinBridge
    unread: Mapping[str, AllHeadsError]

    @property
    def gated(self) -> bool:
        """Is what it carries multiplied, coordinate by coordinate, by gates that the destination sets?

        `value`, `promotes`, `suppresses`, `of` and `copying` are then those of gates of 1. Gates are positive; those of
        a prompt differ between coordinates, and change the direction of what is carried.
        """
        return self.attention.gated

    def attends(self, offsets: Sequence[int] = (0,)) -> list[TokenPair]:
        r"""The k pairs (query token, key token) with the largest attention scores, before softmax.

        ``score = mean over offsets of q R(offset) . k``, with the key ``offset`` positions before the query. Without
        rotary all offsets are the same.

        What positions alone add (ALiBi, relative biases) is left out, and so are soft caps.

        Raises `AllHeadsError` where scores are not of this form, where streams do not begin with tokens, and for no
        offsets.
        """
        query, key = self._side("Q", self.query), self._side("K", self.key)
        read, offsets = self.attention, checked_offsets(offsets)
        return self._pairs(rotated(query, offsets, read.rotary, read.interleaved), key)

    def promotes(self) -> list[TokenPair]:
        """The k pairs (source token, token) that the head makes likelier where it attends to the source alone."""
        value, write = self._ov()
        return self._pairs(value, write.T)

    def suppresses(self) -> list[TokenPair]:
        """The k pairs that it makes less likely."""
        value, write = self._ov()
        return self._pairs(-value, write.T, sign=-1)

    def of(self, token: str | int) -> tuple[list[TokenValue], list[TokenValue]]:
        """What the head promotes and suppresses where it attends to this token alone, k each.

        Raises `AllHeadsError` for text that is not one token, and an id outside the vocabulary.
        """
        value, write = self._ov()
        number, _ = one_token(self.twin, token)
        promotes, suppresses = extreme_tokens(self.twin, value[[number]] @ write, self.k)
        return promotes[0], suppresses[0]

    @property
    def copying(self) -> float:
        """From -1 to 1: the sum of the eigenvalues of the OV circuit over the sum of their sizes.

        Eigenvalues of ``value @ write`` other than 0 are those of ``write @ value``, which is ``[d_head d_head]``.
        """
        value, write = self._ov()
        if len(value) != write.shape[1]:
            raise AllHeadsError("the same tokens at both ends", f"{len(value)} and {write.shape[1]}", "No eigenvalues.")
        eigenvalues = torch.linalg.eigvals((write @ value).double())
        return float(eigenvalues.real.sum() / eigenvalues.abs().sum().clamp_min(1e-300))

    def facts(self) -> dict[str, Any]:
        """Which head it is, and what of it cannot be read."""
        return {"label": self.label, "k": self.k, "gated": self.gated, "unread": list(map(str, self.unread.values()))}

    def preview(self) -> None:
        """Rows take seconds."""

    def to_dataframe(self) -> pandas.DataFrame:
        """`attends` at offset 0, `promotes` and `suppresses`, where they can be read: seconds on a large vocabulary.

        Columns: side, first, first_id, second, second_id, value.
        """
        import pandas

        sides = {} if self.query is None or self.key is None else {"attends": self.attends()}
        if self.value is not None and self.write is not None:
            sides |= {"promotes": self.promotes(), "suppresses": self.suppresses()}
        rows = [
            (side, pair.texts[0], pair.first, pair.texts[1], pair.second, pair.value)
            for side, pairs in sides.items()
            for pair in pairs
        ]
        return pandas.DataFrame(rows, columns=["side", "first", "first_id", "second", "second_id", "value"])

    def _ov(self) -> tuple[Tensor, Tensor]:
        return self._side("V", self.value), self._side("O", self.write)

    def _side(self, name: str, side: Tensor | None) -> Tensor:
        """A side, or the error that says why it cannot be read."""
        if side is None:
            raise self.unread[name]
        return side

    def _pairs(self, A: Tensor, B: Tensor, sign: int = 1) -> list[TokenPair]:
        pairs = []
        for value, a, b in top_pairs(A, B, self.k):
            first, second = token_texts(self.twin, torch.tensor([[a, b]]))
            pairs.append(TokenPair(a, b, (first, second), sign * value))
        return pairs


def head_circuit(wiring: Wiring, branch: ResidualBranch, head: int, k: int) -> HeadCircuit:
    """Read ordinary head ``head`` of a sublayer.

    Raises `AllHeadsError` if its values are not carried along a pattern, and where neither end of its stream is tokens.
    """
    require_values([branch])
    read = branch.attention
    assert read is not None
    unread: dict[str, AllHeadsError] = {}
    made: dict[str, Tensor] = {}
    for name in ("V", "Q", "K") if branch.scores else ("V",):
        side: Side = "Q" if name == "Q" else "V"  # keys are read where values are
        try:
            made[name] = read_tokens(wiring, branch, partial(read.projected, side=name, head=head), side)
        except AllHeadsError as error:
            unread[name] = error
    try:
        made["O"] = write_logits(wiring, branch, read.W_O[head])
    except AllHeadsError as error:
        unread["O"] = error
    if not made:
        raise unread["V"]
    if not branch.scores:
        unread["Q"] = scores_differ(branch)
    return HeadCircuit(
        str(branch.site.label(head)),
        k,
        query=read.scale * read.rotary_scale**2 * made["Q"] if "Q" in made else None,
        key=made.get("K"),
        value=made.get("V"),
        write=made.get("O"),
        attention=read,
        twin=wiring.twin,
        unread=unread,
    )
