"""Where parts stand in pictures: streams side by side, and in each its positions, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from allheads.models.locations import Location
from allheads.plots.token_names import visible

#: A stream by the letters that labels in it begin with (none, ``E``, ``D``, ``V2``), and a position in it.
Place: TypeAlias = tuple[str, int]

#: What sees or hears stands left, then encoders, and on the right what reads them.
_ORDER = ["V", "P", "H", "E", "D", ""]


def stream_of(begin: str, begins: Iterable[str]) -> str:
    """The stream that begins so, with embeddings, or as a stack, by its name or its first hook point.

    ``embed`` is an encoder's where a decoder has a beginning of its own.

    >>> stream_of("embed", ["embed"]), stream_of("embed", ["embed", "decoder_embed"])
    ('', 'E')
    >>> stream_of("vision.layers.0.hook_resid_pre", []), stream_of("vision.layers", [])
    ('V', 'V')
    """
    if begin.startswith("decoder_"):
        return "D"
    if begin in ("embed", "pos_embed"):
        return "E" if any(other.startswith("decoder_") for other in begins) else ""
    return Location.at(begin if ".hook" in begin else f"{begin}.0.stream").tower


def in_order(places: Iterable[Place]) -> list[Place]:
    """Places as they stand from left to right."""
    return sorted(set(places), key=lambda place: (_ORDER.index(place[0][:1]), place))


def place_name(place: Place, token: str) -> str:
    """``position token``, behind the letters of a stream that has some; white space is visible.

    >>> place_name(("E", 3), " house")
    'E3 ·house'
    """
    stream, position = place
    return f"{stream}{position} {visible(token)}"
