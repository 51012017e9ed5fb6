"""The circuits of an ordinary head through the embeddings: where it looks (QK) and what it carries (OV).

Both are d_vocab x d_vocab matrices of rank d_head. They are kept as two thin factors each, and never built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import read_attention
from allheads.twin.prompt import one_token, token_texts
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import Wiring, rotated
from allheads.weights.factors import checked_offsets, require_values
from allheads.weights.top_k import top_pairs
from allheads.weights.vocabulary import TokenPair, TokenValue, extreme_tokens, read_tokens, write_logits

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class HeadCircuit:
    """An ordinary head through the embeddings. Streams are single tokens' embeddings, without positions.

    ``query`` and ``key`` are what the head makes of each token, biases and the scale of the scores included, before
    rotary; ``value`` likewise; ``write`` is what each direction of a value does to the logits, per unit of the final
    norm's scale and less the mean over the vocabulary.
    """

    label: str
    k: int
    query: Float[Tensor, "d_vocab d_head"] | None
    key: Float[Tensor, "d_vocab d_head"] | None
    value: Float[Tensor, "d_vocab d_head"]
    write: Float[Tensor, "d_head d_vocab"]
    rotary: Float[Tensor, " half"] | None
    twin: TwinBridge

    def attends(self, offsets: Sequence[int] = (0,)) -> list[TokenPair]:
        r"""The k pairs (query token, key token) with the largest attention scores, before softmax.

        ``score = mean over offsets of q R(offset) . k``, with the key ``offset`` positions before the query. Without
        rotary all offsets are the same.

        Raises `AllHeadsError` where scores are not of this form (norms of queries, ALiBi), and for no offsets.
        """
        if self.query is None or self.key is None:
            raise AllHeadsError("scores that are x W_Q R W_K^T x^T", f"others at {self.label}", "Its OV can be read.")
        return self._pairs(rotated(self.query, checked_offsets(offsets), self.rotary), self.key)

    def promotes(self) -> list[TokenPair]:
        """The k pairs (source token, token) that the head makes likelier where it attends to the source alone."""
        return self._pairs(self.value, self.write.T)

    def suppresses(self) -> list[TokenPair]:
        """The k pairs that it makes less likely."""
        return self._pairs(-self.value, self.write.T, sign=-1)

    def of(self, token: str | int) -> tuple[list[TokenValue], list[TokenValue]]:
        """What the head promotes and suppresses where it attends to this token alone, k each.

        Raises `AllHeadsError` for text that is not one token, and an id outside the vocabulary.
        """
        number, _ = one_token(self.twin, token)
        promotes, suppresses = extreme_tokens(self.twin, self.value[[number]] @ self.write, self.k)
        return promotes[0], suppresses[0]

    @property
    def copying(self) -> float:
        """From -1 to 1: the sum of the eigenvalues of the OV circuit over the sum of their sizes.

        Eigenvalues of ``value @ write`` other than 0 are those of ``write @ value``, which is ``[d_head d_head]``.
        """
        eigenvalues = torch.linalg.eigvals((self.write @ self.value).double())
        return float(eigenvalues.real.sum() / eigenvalues.abs().sum().clamp_min(1e-300))

    def to_dataframe(self) -> pandas.DataFrame:
        """`attends` at offset 0 where it can be read, `promotes` and `suppresses`: seconds on a large vocabulary.

        Columns: side, first, first_text, second, second_text, value.
        """
        import pandas

        sides = {"attends": []} if self.query is None else {"attends": self.attends()}
        sides |= {"promotes": self.promotes(), "suppresses": self.suppresses()}
        rows = [
            (side, pair.first, pair.texts[0], pair.second, pair.texts[1], pair.value)
            for side, pairs in sides.items()
            for pair in pairs
        ]
        return pandas.DataFrame(rows, columns=["side", "first", "first_text", "second", "second_text", "value"])

    def _pairs(self, A: Tensor, B: Tensor, sign: int = 1) -> list[TokenPair]:
        pairs = []
        for value, a, b in top_pairs(A, B, self.k):
            first, second = token_texts(self.twin, torch.tensor([[a, b]]))
            pairs.append(TokenPair(a, b, (first, second), sign * value))
        return pairs


def head_circuit(wiring: Wiring, label: str, layer: int, head: int, k: int) -> HeadCircuit:
    """Read ordinary head ``head`` of a layer. Raises `AllHeadsError` if its values are not carried along a pattern."""
    require_values(wiring, [layer])
    read, sublayer = read_attention(wiring.twin, layer), wiring.attention[layer]

    def tokens(W: Tensor, b: Tensor | None) -> Tensor:
        return read_tokens(wiring, sublayer, W[head], None if b is None else b[head])

    scored = layer not in wiring.unread_scores
    return HeadCircuit(
        label,
        k,
        query=read.scale * read.rotary_scale**2 * tokens(read.W_Q, read.b_Q) if scored else None,
        key=tokens(read.W_K, read.b_K) if scored else None,
        value=tokens(read.W_V, read.b_V),
        write=write_logits(wiring, sublayer, read.W_O[head]),
        rotary=read.rotary,
        twin=wiring.twin,
    )
