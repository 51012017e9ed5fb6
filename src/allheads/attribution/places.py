"""Where the nodes of a graph stand: streams side by side, and in each its positions, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from allheads.attribution.graph_content import PARTS
from allheads.models.locations import Location
from allheads.twin.labels import Label

if TYPE_CHECKING:
    from allheads.attribution.attribution_graph import AttributionGraph

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


def places_of(graph: AttributionGraph) -> dict[str, Place]:
    """Where nodes stand, by name, the constants nowhere; the target stands in the stream of the outputs."""
    begins = {node.label for node in graph.nodes if node.kind == "E"}
    streams = {begin: stream_of(begin, begins) for begin in begins}
    outputs = "D" if "D" in streams.values() else ""
    places: dict[str, Place] = {}
    for node in graph.nodes:
        if node.kind in PARTS:
            places[node.name] = Label.parse(node.label).stream, node.position
        elif node.kind != "C":
            places[node.name] = streams[node.label] if node.kind == "E" else outputs, node.position
    return places
