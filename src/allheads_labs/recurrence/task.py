"""Recall of key-value pairs: which value came with this key?

A sequence has ``pairs`` keys with a value each, at random places among ``length`` positions, a filler elsewhere, and
then queries: keys alone. Key and value are one token, so that nothing but remembering is asked for. How much there is
to remember (``pairs``) and how long ago it was (``distance``) vary independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from allheads import AllHeadsError

KEYS, VALUES = 64, 8
#: Ids: pairs first, then keys alone, then the filler.
QUERY = KEYS * VALUES
FILLER = QUERY + KEYS
D_VOCAB = FILLER + 1


@dataclass(frozen=True)
class RecallBatch:
    """Ids ``[batch length + queries]``, and the value that each of the queries asks for ``[batch queries]``."""

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch query"]


def recall(
    draw: torch.Generator, shape: tuple[int, int], pairs: int, *, queries: int = 1, distances: Sequence[int] = ()
) -> RecallBatch:
    """Random sequences of a shape, (batch, length), with random queries.

    Or with one query for each of ``distances``: so many tokens after its pair.

    Raises `AllHeadsError` for more pairs than keys or positions, and distances that do not fit.

    >>> batch = recall(torch.Generator().manual_seed(0), (1, 16), 4, distances=[9])
    >>> int(batch.tokens[0, 16 - 9]) % VALUES == int(batch.answers[0, 0])
    True
    """
    size, length = shape
    if not 1 <= pairs <= min(KEYS, length):
        raise AllHeadsError(f"1 to {min(KEYS, length)} pairs", str(pairs), f"There are {KEYS} keys, a place for each.")
    planted = [length + query - distance for query, distance in enumerate(distances)]
    if len(set(planted)) > pairs or len(set(planted)) < len(planted) or not all(0 <= at < length for at in planted):
        expected = f"at most {pairs} different distances within {length} positions"
        raise AllHeadsError(expected, f"{list(distances)}", "A query follows the last position and those before it.")
    keys = torch.rand(size, KEYS, generator=draw).argsort(1)[:, :pairs]
    values = torch.randint(VALUES, (size, pairs), generator=draw)
    order = torch.rand(size, length, generator=draw)
    # Sorted first: the places of the first pairs.
    order[:, planted] = torch.arange(len(planted)) - float(len(planted))
    places = order.argsort(1)[:, :pairs]
    tokens = torch.full((size, length), FILLER).scatter(1, places, keys * VALUES + values)
    queried = torch.randint(pairs, (size, queries), generator=draw)
    if distances:
        queried = torch.arange(len(planted)).expand(size, -1)
    return RecallBatch(torch.cat([tokens, QUERY + keys.gather(1, queried)], 1), values.gather(1, queried))


def token_name(token: int) -> str:
    """What a token says: a key with its value, a key that is asked for, or nothing.

    >>> token_name(3 * VALUES + 5), token_name(QUERY + 3), token_name(FILLER)
    ('k3=v5', 'k3?', '.')
    """
    if token == FILLER:
        return "."
    return f"k{token - QUERY}?" if token >= QUERY else f"k{token // VALUES}=v{token % VALUES}"
