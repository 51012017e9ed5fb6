"""The names of tokens in pictures: white space is visible, long ones are cut, and no two are the same."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jaxtyping import Int
from torch import Tensor

from allheads.attribution.places import Place
from allheads.twin.prompt import token_texts
from allheads.twin.twin import TwinBridge

_LONGEST = 18
_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


def token_names(twin: TwinBridge, ids: Int[Tensor, "1 pos"]) -> list[str]:
    """``position token`` for each token, all different, with white space made visible, escaped for plotly."""
    return shown_names(token_texts(twin, ids))


def shown_names(words: Sequence[str]) -> list[str]:
    """Words with white space made visible, escaped for plotly, and with their positions: all different."""
    return [f"{position} {escape(visible(word), quote=False)}" for position, word in enumerate(words)]


def visible(word: str) -> str:
    """A word with its white space made visible, cut where it is long.

    >>> visible(" a<b>")
    '·a<b>'
    """
    shown = "".join(_VISIBLE.get(c, c if c.isprintable() else "�") for c in word)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def place_name(place: Place, token: str) -> str:
    """``position token``, behind the letters of a stream that has some; white space is visible.

    >>> place_name(("E", 3), " house")
    'E3 ·house'
    """
    stream, position = place
    return f"{stream}{position} {visible(token)}"
