"""Parts of speech by rule: a short list of words and a few endings. A rule, no more: "other" is mostly nouns and verbs.

Ambiguous words have one tag ("that" is a determiner, "to" a preposition), "-ing" and "-ed" are read off the ending
("thing" is too short, "string" is not), and names in code are words like others.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

_LISTS = {
    "determiner": "the a an this that these those each every either neither some any no all both another such",
    "preposition": "of in to for with on at from by about as into through after over between out against during "
    "without before under around among within upon below above per via since until",
    "pronoun": "i you he she it we they me him her us them my your his its our their mine yours itself himself herself "
    "themselves yourself who whom whose which what one",
    "conjunction": "and or but if because while whereas although though unless when where whether so than nor",
    "auxiliary": "is are was were be been being am do does did has have had can could may might must shall should will "
    "would not cannot",
}
_LISTED = {word: tag for tag, words in _LISTS.items() for word in words.split()}
#: Ending, the shortest word that has it as one, and its tag.
_ENDINGS = (("ing", 6, "-ing"), ("ed", 5, "-ed"), ("ly", 5, "-ly"))

TAGS = (*_LISTS, "number", "punctuation", *(tag for _, _, tag in _ENDINGS), "other", "space")

_WORDS = re.compile(r"\s+|[A-Za-z_]+(?:'[A-Za-z]+)?|\d+(?:[.,]\d+)*|.", re.DOTALL)


def tag(word: str) -> str:
    """The tag of one word, out of `TAGS`.

    >>> [tag(word) for word in ("The", "it", "walked", "sing", "parsing", "3.14", "==", "parser")]
    ['determiner', 'pronoun', '-ed', 'other', '-ing', 'number', 'punctuation', 'other']
    """
    lower = word.lower()
    if not word.strip():
        return "space"
    if lower in _LISTED:
        return _LISTED[lower]
    if word[0].isdigit():
        return "number"
    if not any(c.isalpha() for c in word):
        return "punctuation"
    return next((name for end, least, name in _ENDINGS if lower.endswith(end) and len(lower) >= least), "other")


def tags(pieces: Sequence[str]) -> list[str]:
    """The tag of every token of a text, which is that of the word its first visible character is in.

    >>> tags(["The", " pars", "ing", " of", "\\n", " 12", "."])
    ['determiner', '-ing', '-ing', 'preposition', 'space', 'number', 'punctuation']
    """
    text = "".join(pieces)
    words = [(match.start(), tag(match.group())) for match in _WORDS.finditer(text)]
    starts = [start for start, _ in words]
    named, at = [], 0
    for piece in pieces:
        visible = at + len(piece) - len(piece.lstrip())
        inside = visible if visible < at + len(piece) else at
        named.append(words[bisect_right(starts, inside) - 1][1] if piece else "space")
        at += len(piece)
    return named
