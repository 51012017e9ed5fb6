"""Tokens at both ends of the network: what a sublayer reads of an embedding, and what a write does to the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.twin.prompt import token_texts
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import ResidualBranch, Side, Wiring
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
    wiring: Wiring, branch: ResidualBranch, read: Callable[[Tensor], Tensor], side: Side = "Q"
) -> Float[Tensor, "d_vocab ..."]:
    """``read(norm(W_E))``: what would be read if the stream were one token's embedding, without its position.

    Raises `AllHeadsError` where the stream does not begin with embeddings of tokens.
    """
    table, steps = wiring.tokens(branch, side)
    dtype = torch.promote_types(table.dtype, torch.float32)
    rows = []
    for some in chunks(*table.shape):
        x = table[some].to(dtype)
        for factor, norm in steps:
            x = factor * x if norm is None else norm(factor * x)
        rows.append(read(x))
    return torch.cat(rows)


def write_logits(
    wiring: Wiring, branch: ResidualBranch, W: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_vocab"]:
    """``W gain W_U``: logits per unit written and per unit of the final norm's scale, less their mean.

    The mean over the vocabulary changes no probability. Norms behind the sublayer or in the stream add their gains, and
    multiply by scales of their own that are left out. Raises `AllHeadsError` where the stream does not end in logits.
    """
    norms, W_U = wiring.to_logits(branch)
    direction = W.to(torch.promote_types(W.dtype, torch.float32))
    for norm in norms:
        direction = norm.direction(direction)
    logits = direction @ W_U.to(direction)
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


def written(branch: ResidualBranch, W: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """What is added to the stream, up to a positive factor: through the norm behind the sublayer, if there is one."""
    return W if branch.after is None else branch.after.direction(W)
