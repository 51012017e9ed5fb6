"""Links read off cross-attention, and how many of them are the planted ones.

A word of the translation is linked to every word of the sentence that the decoder gives at least `THRESHOLD` of its
attention when it writes that word. Dropped words have no link and words made of two have two, so that precision and
recall differ; ends of sentences count on neither side.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from allheads_labs.translation.language import SentencePair

#: Two words that share the attention evenly are both over it; chosen before any run.
THRESHOLD = 0.25

Links = frozenset[tuple[int, int]]


def links(weights: Float[Tensor, "to from"], pair: SentencePair) -> Links:
    """The links that attention makes in one pair; rows and columns beyond its words are ends and padding.

    >>> import torch
    >>> links(torch.tensor([[0.1, 0.9, 0.0]]), SentencePair(("the", "noun0"), ("NOUN0",), frozenset()))
    frozenset({(0, 1)})
    """
    places = (weights[: len(pair.target), : len(pair.source)] >= THRESHOLD).nonzero().tolist()
    return frozenset((to, here) for to, here in places)


def score(read: Sequence[Links], planted: Sequence[Links]) -> dict[str, float]:
    """Precision and recall of links over all sentences together, and their harmonic mean.

    >>> score([frozenset({(0, 0), (1, 1), (1, 2)})], [frozenset({(0, 0)})])
    {'precision': 0.3333333333333333, 'recall': 1.0, 'f1': 0.5}
    """
    common = sum(len(a & b) for a, b in zip(read, planted, strict=True))
    ours, theirs = sum(map(len, read)), sum(map(len, planted))
    precision, recall = common / ours if ours else 0.0, common / theirs if theirs else 0.0
    total = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / total if total else 0.0}


def diagonal(pair: SentencePair) -> Links:
    """The baseline that looks at no word: each place is linked to the one as far along."""
    last = len(pair.target)
    return frozenset((to, min(len(pair.source) - 1, round(to * len(pair.source) / last))) for to in range(last))
