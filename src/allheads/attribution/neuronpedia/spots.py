"""What a node is called in a file, and where it stands there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from allheads.attribution.graph_content import PARTS
from allheads.attribution.neuronpedia.numbering import Columns, Features, cantor
from allheads.attribution.places import places_of
from allheads.twin.labels import Label

if TYPE_CHECKING:
    from allheads.attribution.attribution_graph import AttributionGraph
    from allheads.attribution.graph_content import Node
    from allheads.attribution.question import Question

#: What pages call the kinds of nodes: heads are drawn as triangles, tokens and logits as squares, constants as a plus.
FEATURE_TYPES = {
    "N": "cross layer transcoder",
    "A": "lorsa",
    "X": "lorsa",
    "F": "cross layer transcoder",
    "R": "reconstruction error",
    "E": "embedding",
    "T": "logit",
    "C": "bias",
}
#: What stands in the middle of a name, so that no neuron has it.
_MIDDLES = {"A": "att_", "X": "cross_", "N": "", "F": "latent_", "R": "error_"}


@dataclass(frozen=True)
class Spot:
    """A node's name, layer, number among all features, and column."""

    node_id: str
    layer: str
    feature: int
    column: int

    @property
    def everywhere(self) -> str:
        """Its name at whatever position."""
        return f"{self.node_id.rpartition('_')[0]}-{self.column}"


class Spots:
    """The spots of a graph's nodes, and of what else is named beside them."""

    def __init__(self, graph: AttributionGraph, question: Question) -> None:
        self.graph, self.question = graph, question
        self.features = Features.of(question.twin, question.autoencoders)
        self.columns, self._places = Columns.of(graph), places_of(graph)
        self._lengths = Counter(node.label for node in graph.nodes if node.kind == "E")

    @property
    def last(self) -> int:
        """The row after all layers: what the target reads there has no layer of its own."""
        return len(self.features.widths)

    def of(self, node: Node) -> Spot:
        """The spot of any node but the constants, which stand in every layer."""
        if node.kind in PARTS:
            return self.of_part(node.name)
        column = self.columns.column(self._places[node.name])
        if node.kind == "E":
            token = self.question.id_of(node.label, node.position, self._lengths[node.label])
            return Spot(f"E_{-1 if token is None else token}_{column}", "E", column, column)
        entry = self.entry
        return Spot(f"{self.last + 1}_{entry}_{column}", str(self.last + 1), entry, column)

    def of_part(self, name: str) -> Spot:
        """The spot of a head or neuron, ``L3.A5@7``, whether it is in the graph or not; and of embeddings that are."""
        begin, _, position = name.rpartition("@")
        if begin in self._lengths:
            return self.of(self.graph[name])
        label = Label.parse(begin)
        column = self.columns.column((label.stream, int(position)))
        layer = self.features.layer(label)
        index = label.index if label.kind != "N" else self.features.index(label)
        node_id = f"{layer}_{_MIDDLES[label.kind]}{index}_{column}"
        return Spot(node_id, str(layer), self.features.feature(label), column)

    def of_constants(self, layer: int) -> Spot:
        """The spot of the constants that a layer reads; the target's layer is the last."""
        column = self.columns.column(self._places[self.graph.nodes[0].name])
        width = self.features.widths[layer] if layer < self.last else 0
        return Spot(f"{layer}_bias_{column}", str(layer), cantor(layer, width), column)

    @property
    def entry(self) -> int:
        """The token or class that is explained; past all of them, what is made of several."""
        entries = self.question.metric.entries
        return entries[0] if len(entries) == 1 else int(self.question.twin.cfg.d_vocab_out)

    def layer_of(self, node: Node) -> int:
        """In whose row the constants stand that a node reads."""
        return self.features.layer(Label.parse(node.label)) if node.kind in PARTS else self.last
