"""Attributes that lie apart: what is known of the one that is asked for?

A sequence tells of ``ENTITIES``, each with a key. Every attribute of each is a token of its own, the sum of the
entity's key and the attribute's value, and all tokens stand in random order. Then a key is asked for, and all
attributes of its entity are to be named at once: four tokens have to be found, and one head can look at all of them,
or each of four heads at one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from allheads import AllHeadsError

KEYS, ENTITIES, ATTRIBUTES, VALUES = 16, 4, 4, 8
#: Ids: a key with a value of an attribute first, then keys that are asked for.
QUERY = KEYS * ATTRIBUTES * VALUES
D_VOCAB = QUERY + KEYS
LENGTH = ENTITIES * ATTRIBUTES + 1
#: The kind of a token that tells of another entity.
OTHER = ATTRIBUTES


@dataclass(frozen=True)
class AttributeBatch:
    """Ids, the right value of every attribute, and which attribute of the right entity each token tells, or `OTHER`."""

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch attribute"]
    kinds: Int[Tensor, "batch token"]

    def chosen(self, rows: Int[Tensor, " row"]) -> AttributeBatch:
        """Some of its sequences."""
        return AttributeBatch(self.tokens[rows], self.answers[rows], self.kinds[rows])


def sequences(draw: torch.Generator, size: int) -> AttributeBatch:
    """Random sequences.

    Raises `AllHeadsError` for none.

    >>> batch = sequences(torch.Generator().manual_seed(0), 2)
    >>> batch.tokens.shape, sorted(set(batch.kinds[0].tolist()))
    (torch.Size([2, 17]), [0, 1, 2, 3, 4])
    """
    if size < 1:
        raise AllHeadsError("at least one sequence", str(size), "A batch has dozens.")
    keys = torch.rand(size, KEYS, generator=draw).argsort(1)[:, :ENTITIES]
    values = torch.randint(VALUES, (size, ENTITIES, ATTRIBUTES), generator=draw)
    attribute = torch.arange(ATTRIBUTES)
    ids = (keys[..., None] * ATTRIBUTES + attribute) * VALUES + values
    order = torch.rand(size, LENGTH - 1, generator=draw).argsort(1)
    queried = torch.randint(ENTITIES, (size,), generator=draw)
    rows = torch.arange(size)
    is_queried = torch.arange(ENTITIES)[:, None] == queried[:, None, None]
    kinds = torch.where(is_queried, attribute, OTHER).flatten(1).gather(1, order)
    tokens = torch.cat([ids.flatten(1).gather(1, order), QUERY + keys[rows, queried, None]], 1)
    return AttributeBatch(tokens, values[rows, queried], kinds)


def token_name(token: int) -> str:
    """What a token says: an attribute of an entity and its value, or which entity is asked for.

    >>> token_name(0), token_name((3 * ATTRIBUTES + 1) * VALUES + 5), token_name(QUERY + 3)
    ('e0.a=0', 'e3.b=5', 'e3?')
    """
    if token >= QUERY:
        return f"e{token - QUERY}?"
    told, value = divmod(token, VALUES)
    entity, attribute = divmod(told, ATTRIBUTES)
    return f"e{entity}.{'abcd'[attribute]}={value}"
