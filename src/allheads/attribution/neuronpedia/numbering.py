"""Where nodes stand in a file: layers in one row, features in each layer, positions from left to right.

A feature's number is unique among all layers: Cantor's pairing of its layer and its index. Within a layer neurons come
first, expert by expert, then ordinary heads, so that a head and a neuron of one index are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from allheads.attribution.places import Place, in_order, places_of
from allheads.twin.autoencoder import SparseAutoencoder
from allheads.twin.capture import captured
from allheads.twin.labels import Label
from allheads.twin.sites import sites
from allheads.twin.twin import TwinBridge

if TYPE_CHECKING:
    from allheads.attribution.attribution_graph import AttributionGraph
    from allheads.attribution.question import Question


def cantor(layer: int, index: int) -> int:
    """One number for a layer and an index.

    >>> cantor(0, 5), cantor(5, 0), cantor(1, 2)
    (20, 15, 8)
    """
    return (layer + index) * (layer + index + 1) // 2 + index


@dataclass(frozen=True)
class Features:
    """The layers of a twin, encoders before decoders, and the index of every head and neuron in its layer."""

    #: The number of the first layer of each stream, by its letters.
    first: dict[str, int]
    #: The index of the first head or neuron of each sublayer, by name: ``L3.N``, ``L3.A``.
    starts: dict[str, int]
    #: Heads and neurons in each layer.
    widths: list[int]

    @classmethod
    def of(cls, twin: TwinBridge, autoencoders: Iterable[SparseAutoencoder] = ()) -> Features:
        """The numbers of a twin's parts, and of latents.

        >>> Features.of(twin).feature(Label.parse("L3.N812")) == cantor(3, 812)
        True
        """
        everything = [*sites(twin), *(site for each in autoencoders for site in each.sites)]
        lengths: dict[str, int] = {}
        for site in everything:
            tower = site.location.tower
            lengths[tower] = max(lengths.get(tower, 0), site.location.layer + 1)
        streams = [stream for stream, _ in in_order((tower, 0) for tower in lengths)]
        first = {stream: sum(lengths[other] for other in streams[:n]) for n, stream in enumerate(streams)}
        starts, widths = {}, [0] * sum(lengths.values())
        for site in sorted(everything, key=lambda site: site.kind != "N"):
            layer = first[site.location.tower] + site.location.layer
            starts[site.name] = widths[layer]
            widths[layer] += site.count
        return cls(first, starts, widths)

    def layer(self, label: Label) -> int:
        """The layer of a head or neuron, counted through all stacks."""
        return self.first[label.stream] + label.layer

    def index(self, label: Label) -> int:
        """Its index in the layer."""
        return self.starts[f"{label.stem}.{label.kind}"] + label.index

    def feature(self, label: Label) -> int:
        """Its number among all."""
        return cantor(self.layer(label), self.index(label))


@dataclass(frozen=True)
class Columns:
    """The positions of all streams, one after the other, and what stands there."""

    first: dict[str, int]
    tokens: list[str]

    @classmethod
    def of(cls, graph: AttributionGraph) -> Columns:
        """The columns of a graph, every stream as long as it is on the prompt."""
        places = places_of(graph)
        known = {places[node.name]: node.token for node in graph.nodes if node.kind == "E"}
        others = [] if graph.question is None else _places(graph.question)
        known = {place: known.get(place, "") for place in in_order([*known, *places.values(), *others])}
        first: dict[str, int] = {}
        for column, (stream, position) in enumerate(known):
            first.setdefault(stream, column - position)
        return cls(first, list(known.values()))

    def column(self, place: Place) -> int:
        """Where a place stands."""
        stream, position = place
        return self.first[stream] + position


def _places(question: Question) -> list[Place]:
    """All places of the streams that run on a prompt."""
    first = {site.location.tower: site for site in reversed(sites(question.twin))}
    seen = captured(question.twin, question.inputs, [site.point for site in first.values()])
    lengths = {tower: seen[site.point].shape[1] for tower, site in first.items() if site.point in seen}
    return [(tower, position) for tower, length in lengths.items() for position in range(length)]
