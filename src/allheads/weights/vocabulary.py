"""Tokens at both ends of the network: what a sublayer reads of an embedding, and what a write does to the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.twin.prompt import token_texts
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import ResidualBranch, Wiring
from allheads.weights.top_k import chunks


@dataclass(frozen=True)
class TokenValue:
    """A token and a number; what it measures is said where it stands."""

    token: int
    text: str
    value: float


@dataclass(frozen=True)
class TokenPair:
    """Two tokens and a number: query and key, or source and what it makes likelier."""

    first: int
    second: int
    texts: tuple[str, str]
    value: float


def read_tokens(
    wiring: Wiring, sublayer: ResidualBranch, W: Float[Tensor, "d_model out"], b: Float[Tensor, " out"] | None
) -> Float[Tensor, "d_vocab out"]:
    """``norm(W_E) W + b``: what would be read if the stream were one token's embedding, without its position."""
    W_E = wiring.twin.W_E.detach()
    dtype = torch.promote_types(W_E.dtype, torch.float32)
    rows = []
    for some in chunks(*W_E.shape):
        x = wiring.embedding * W_E[some].to(dtype)
        x = x if sublayer.before is None else sublayer.before(x)
        rows.append(x @ W.to(x))
    read = torch.cat(rows)
    return read if b is None else read + b.to(read)


def write_logits(
    wiring: Wiring, sublayer: ResidualBranch, W: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_vocab"]:
    """``W gain W_U``: logits per unit written and per unit of the final norm's scale, less their mean.

    The mean over the vocabulary changes no probability. A norm behind the sublayer adds its gain, and multiplies by
    a scale of its own that is left out.
    """
    direction = written(sublayer, W.to(torch.promote_types(W.dtype, torch.float32)))
    if wiring.final is not None:
        direction = wiring.final.gain.to(direction) * wiring.final.centre(direction)
    logits = direction @ wiring.twin.W_U.detach().to(direction)
    return logits - logits.mean(-1, keepdim=True)


def extreme_tokens(
    twin: TwinBridge, values: Float[Tensor, "row d_vocab"], k: int
) -> tuple[list[list[TokenValue]], list[list[TokenValue]]]:
    """For each row the k tokens with the largest numbers, and the k with the smallest, the strongest first."""

    def tokens(largest: bool) -> list[list[TokenValue]]:
        numbers, ids = values.topk(min(k, values.shape[1]), largest=largest)
        return [
            [TokenValue(*token) for token in zip(row.tolist(), token_texts(twin, row[None]), of_row, strict=True)]
            for row, of_row in zip(ids, numbers.tolist(), strict=True)
        ]

    return tokens(True), tokens(False)


def written(sublayer: ResidualBranch, W: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """What is added to the stream, up to a positive factor: through the norm behind the sublayer, if there is one."""
    return W if sublayer.after is None else sublayer.after.gain.to(W) * sublayer.after.centre(W)
