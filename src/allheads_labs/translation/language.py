"""A toy language and its translation, with every link between their words known.

A source sentence is subject, verb, object and perhaps an adverb: ``the old dog-s picked up a ball today``. Its
translation differs in five ways, each planted:

- the object comes before the verb, adjectives behind nouns, the adverb first (reordering);
- determiners are dropped: they have no link;
- a plural noun is one word here and two there, the noun and a mark (one to many);
- a verb and its particle are two words here and one there, which depends on both (many to one);
- the particle stands behind the verb or behind the object.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from allheads_labs.kit.small_models import END, PAD, START

NOUNS, ADJECTIVES, VERBS, PARTICLES, ADVERBS = 24, 12, 10, 3, 8
_SOURCE = [
    *("the", "a", "some"),
    *(f"noun{n}" for n in range(NOUNS)),
    *(f"noun{n}s" for n in range(NOUNS)),
    *(f"adj{n}" for n in range(ADJECTIVES)),
    *(f"verb{n}" for n in range(VERBS)),
    *(f"up{n}" for n in range(PARTICLES)),
    *(f"adv{n}" for n in range(ADVERBS)),
]
_TARGET = [
    "PL",
    *(f"NOUN{n}" for n in range(NOUNS)),
    *(f"ADJ{n}" for n in range(ADJECTIVES)),
    *(f"VERB{n}" for n in range(VERBS)),
    *(f"VERB{n}UP{p}" for n in range(VERBS) for p in range(PARTICLES)),
    *(f"ADV{n}" for n in range(ADVERBS)),
]
#: One vocabulary: padding, beginning, end, then the words of both languages.
WORDS = ("<pad>", "<s>", "</s>", *_SOURCE, *_TARGET)
IDS = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True)
class SentencePair:
    """A sentence, its translation, and the links between them: (place in the translation, place in the sentence)."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    links: frozenset[tuple[int, int]]


def pair(draw: random.Random) -> SentencePair:
    """A random sentence with its translation.

    >>> one = pair(random.Random(3))
    >>> " ".join(one.source), " ".join(one.target)
    ('some adj9 noun15 verb1 some adj11 noun15', 'NOUN15 ADJ9 NOUN15 ADJ11 VERB1')
    """
    source: list[str] = []
    subject = _noun_phrase(draw, source)
    number, at = draw.randrange(VERBS), len(source)
    source.append(f"verb{number}")
    particle = draw.randrange(PARTICLES) if draw.random() < 0.4 else None
    split = draw.random() < 0.5
    verb: tuple[str, tuple[int, ...]] = (f"VERB{number}", (at,))
    if particle is not None and not split:
        source.append(f"up{particle}")
    object_ = _noun_phrase(draw, source)
    if particle is not None:
        if split:
            source.append(f"up{particle}")
        verb = (f"VERB{number}UP{particle}", (at, len(source) - 1 if split else at + 1))
    adverb: list[tuple[str, tuple[int, ...]]] = []
    if draw.random() < 0.5:
        which = draw.randrange(ADVERBS)
        adverb = [(f"ADV{which}", (len(source),))]
        source.append(f"adv{which}")
    target = [*adverb, *subject, *object_, verb]
    links = frozenset((place, here) for place, (_, froms) in enumerate(target) for here in froms)
    return SentencePair(tuple(source), tuple(word for word, _ in target), links)


def _noun_phrase(draw: random.Random, source: list[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Add one to the sentence; returns its translation, each word with the places it comes from."""
    if draw.random() < 0.7:
        source.append(draw.choice(("the", "a", "some")))
    adjective = draw.randrange(ADJECTIVES) if draw.random() < 0.4 else None
    if adjective is not None:
        source.append(f"adj{adjective}")
    noun, plural, at = draw.randrange(NOUNS), draw.random() < 0.4, len(source)
    source.append(f"noun{noun}s" if plural else f"noun{noun}")
    target: list[tuple[str, tuple[int, ...]]] = [(f"NOUN{noun}", (at,))]
    if plural:
        target.append(("PL", (at,)))
    if adjective is not None:
        target.append((f"ADJ{adjective}", (at - 1,)))
    return target


def corpus(seed: int, train: int, held_out: int) -> tuple[list[SentencePair], list[SentencePair]]:
    """Training and held-out pairs: no sentence of one is in the other.

    >>> train, held_out = corpus(0, 50, 20)
    >>> len({each.source for each in train} & {each.source for each in held_out})
    0
    """
    draw = random.Random(seed)
    by_source: dict[tuple[str, ...], SentencePair] = {}
    while len(by_source) < train + held_out:
        made = pair(draw)
        by_source.setdefault(made.source, made)
    pairs = list(by_source.values())
    return pairs[:train], pairs[train:]


@dataclass(frozen=True)
class TranslationBatch:
    """Ids, padded: the sentence with its end, what the decoder reads, what it is to write."""

    source: Int[Tensor, "batch from"]
    read: Int[Tensor, "batch to"]
    write: Int[Tensor, "batch to"]

    @property
    def mask(self) -> Int[Tensor, "batch from"]:
        """1 where there is a word or an end."""
        return (self.source != PAD).long()


def batch(pairs: list[SentencePair]) -> TranslationBatch:
    """Pairs as ids.

    >>> batch([SentencePair(("the", "noun0"), ("NOUN0",), frozenset({(0, 1)}))]).source.tolist()
    [[3, 6, 2]]
    """
    source = _padded([[*(IDS[word] for word in pair.source), END] for pair in pairs])
    read = _padded([[START, *(IDS[word] for word in pair.target)] for pair in pairs])
    return TranslationBatch(source, read, _padded([[*(IDS[word] for word in pair.target), END] for pair in pairs]))


def _padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
