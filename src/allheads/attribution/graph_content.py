"""What a graph is made of: nodes, what flows into them, edges, and all of it as it is kept in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Literal, Protocol

from allheads.attribution.edges import Side
from allheads.attribution.marks import Marks
from allheads.twin.labels import Label

#: Ordinary head, head that attends to an encoder, neuron; latent and error of a sparse autoencoder.
PartKind = Literal["A", "X", "N", "F", "R"]
#: ``E`` token with its position, ``C`` constants, ``T`` target.
NodeKind = Literal[PartKind, "E", "C", "T"]
PARTS = ("A", "X", "N", "F", "R")

#: No network has more layers.
_LAYERS = 10_000
#: Influence is computed in a table of all nodes by all nodes.
_NODES = 10_000


class Ends(Protocol):
    """Whatever goes from one node to another, by their names."""

    @property
    def source(self) -> str:
        """Where from."""

    @property
    def target(self) -> str:
        """Where to."""


@dataclass(frozen=True)
class Inflow:
    """What one side of a node reads: ``total = kept + left_out``; ``left_out_size`` sums absolute edges left out."""

    total: float
    kept: float
    left_out: float
    left_out_size: float


@dataclass(frozen=True)
class Node:
    """A part at a position, and its effect on the target over all paths, in units of the target.

    ``name`` is ``L3.A5@13``, ``L10.N77@13``, ``embed@4``, ``constants`` or ``target``.
    """

    name: str
    kind: NodeKind
    label: str
    layer: int
    position: int
    token: str
    effect: float
    inflow: dict[Side, Inflow]


@dataclass(frozen=True)
class Edge:
    """The part of the source's effect that flows straight into this side of the target."""

    source: str
    target: str
    weight: float
    side: Side = "V"


@dataclass(frozen=True, repr=False)
class GraphContent:
    """What of a graph is in its file.

    For each node and side, edges kept and left out sum to the whole: through values, to the node's effect.
    ``coverage`` is the share of absolute edge weight into kept nodes that is kept. ``marks`` are what a reader has
    pinned, grouped and noted.
    """

    rule: str
    target: str
    tokens: list[str]
    target_value: float
    nodes: list[Node]
    edges: list[Edge]
    coverage: float
    marks: Marks = field(default_factory=Marks)

    def check(self) -> None:
        """Raise `ValueError` where nodes, edges, tokens and marks are not of one graph."""
        names = {node.name for node in self.nodes}
        if not self.nodes or self.nodes[0].kind != "T" or len(names) < len(self.nodes):
            raise ValueError("nodes that do not begin with one target")
        for node in self.nodes:
            inside = node.position >= -1 and -1 <= node.layer <= _LAYERS
            if node.name != _name(node) or not inside:
                raise ValueError(f"a node {node.name!r} that is none")
            if node.position < 0 and node.kind != "C":
                raise ValueError(f"a node {node.name!r} without a token")
        if len(self.nodes) > _NODES:
            raise ValueError(f"{len(self.nodes):,} nodes, where at most {_NODES:,} are read")
        if not names.issuperset(end for edge in self.edges for end in (edge.source, edge.target)):
            raise ValueError("edges between other nodes")
        if len({(edge.source, edge.target, edge.side) for edge in self.edges}) < len(self.edges):
            raise ValueError("two edges between the same nodes")
        from_sources(names, self.edges)
        if not names.issuperset(self.marks.nodes()):
            raise ValueError("marks at other nodes")
        flows = [number for node in self.nodes for flow in node.inflow.values() for number in vars(flow).values()]
        effects = [self.target_value, self.coverage, *(node.effect for node in self.nodes)]
        if not all(map(math.isfinite, [*effects, *flows, *(edge.weight for edge in self.edges)])):
            raise ValueError("numbers that are not finite")


def from_sources(names: Iterable[str], edges: Iterable[Ends]) -> list[str]:
    """Names so that no edge goes back. Raises `ValueError` for edges that go in a circle."""
    before: dict[str, set[str]] = {name: set() for name in names}
    for edge in edges:
        before[edge.target].add(edge.source)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError:
        raise ValueError("edges that go in a circle") from None


def _name(node: Node) -> str:
    """The name that a node of this kind, label and position has."""
    if node.kind in ("C", "T"):
        return {"C": "constants", "T": "target"}[node.kind]
    if node.kind == "E":
        return f"{node.label}@{node.position}"
    label = Label.parse(node.label)
    return f"{label}@{node.position}" if (label.kind, label.layer) == (node.kind, node.layer) else "another"
