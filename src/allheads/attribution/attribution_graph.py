"""An attribution graph: parts at positions, what flows between them, and how much of it is not shown."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allheads.attribution.confirm import Confirmation, confirm
from allheads.attribution.edges import Side
from allheads.attribution.question import Question
from allheads.disk import checked_path, named_path, write_whole
from allheads.errors import AllHeadsError
from allheads.extras import extra
from allheads.result import Result, finite
from allheads.twin.labels import Label
from allheads.untrusted import fitted, read_json, sealed, unsealed

if TYPE_CHECKING:
    import networkx
    import pandas

#: Ordinary head, head that attends to an encoder, neuron.
PartKind = Literal["A", "X", "N"]
#: ``E`` token with its position, ``C`` constants, ``T`` target.
NodeKind = Literal[PartKind, "E", "C", "T"]

#: Of a saved graph: its format, bytes that are read at most, and layers that no network has.
_VERSION, _LARGEST, _LAYERS = 2, 2**25, 10_000


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
class AttributionGraph(Result):
    """Nodes with the target first, in the order in which they were found, and the edges between them.

    For each node and side, edges kept and left out sum to the whole: through values, to the node's effect.
    ``coverage`` is the share of absolute edge weight into kept nodes that is kept. ``question`` is what was asked; a
    graph that was read from a file has none.
    """

    rule: str
    target: str
    tokens: list[str]
    target_value: float
    nodes: list[Node]
    edges: list[Edge]
    coverage: float
    question: Question | None = field(default=None, compare=False, repr=False)

    def confirm(self, k: int = 100) -> Confirmation:
        """Take its k largest parts away, one by one, and compare with their effects; see
        `allheads.attribution.confirm`.

        Raises `AllHeadsError` for a graph without heads or neurons, and for one that was read from a file.

        >>> import allheads as ah
        >>> print(ah.graph(twin, "Mary and John", " Mary", budget=5).confirm())
        5 parts; frozen twin: relative error at most ...
        """
        if self.question is None:
            raise AllHeadsError(
                "a graph that knows its twin", "one read from a file", "Make it again: ah.graph(twin, prompt, target)."
            )
        parts = [(node.label, node.position, node.effect) for node in self.parts[:k]]
        return confirm(self.question, parts, self.target_value)

    def __getitem__(self, name: str) -> Node:
        """A node by name. Raises `AllHeadsError` if it is not kept."""
        found = next((node for node in self.nodes if node.name == name), None)
        if found is None:
            raise AllHeadsError("a node of this graph, such as L3.A5@13", name, "See graph.nodes; budget= keeps more.")
        return found

    @property
    def parts(self) -> list[Node]:
        """The nodes that are heads or neurons, largest effect first."""
        return sorted((node for node in self.nodes if node.kind in "AXN"), key=lambda node: -abs(node.effect))

    def into(self, name: str) -> list[Edge]:
        """Edges into a node, largest first."""
        return sorted((edge for edge in self.edges if edge.target == name), key=lambda edge: -abs(edge.weight))

    def out_of(self, name: str) -> list[Edge]:
        """Edges out of a node, largest first."""
        return sorted((edge for edge in self.edges if edge.source == name), key=lambda edge: -abs(edge.weight))

    def facts(self) -> dict[str, Any]:
        """The question in words, and how much of the network is in the graph."""
        return {
            "target": self.target,
            "rule": self.rule,
            "target_value": self.target_value,
            "nodes": len(self.nodes),
            "edges": len(self.edges),
            "coverage": self.coverage,
        }

    def to_dataframe(self, of: Literal["nodes", "edges"] = "nodes") -> pandas.DataFrame:
        """A row for each node, largest effect first (name, kind, label, layer, position, token, effect), or each edge.

        Edges: source, target, side, weight. Raises `AllHeadsError` for anything else.

        >>> import allheads as ah
        >>> graph = ah.graph(twin, "Mary and John", " Mary", budget=5)
        >>> list(graph.to_dataframe("edges").columns)
        ['source', 'target', 'side', 'weight']
        """
        import pandas

        if of == "edges":
            rows = [(edge.source, edge.target, edge.side, edge.weight) for edge in self.edges]
            return pandas.DataFrame(rows, columns=["source", "target", "side", "weight"])
        if of != "nodes":
            raise AllHeadsError("a table of nodes or edges", repr(of), "Choose one.")
        columns = ["name", "kind", "label", "layer", "position", "token", "effect"]
        nodes = sorted(self.nodes, key=lambda node: -abs(node.effect))
        return pandas.DataFrame([[getattr(node, name) for name in columns] for node in nodes], columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Facts, ``nodes`` with what flows into them, and ``edges``: plain values for JSON."""
        nodes, edges = ([asdict(each) for each in each_of] for each_of in (self.nodes, self.edges))
        return finite(self.facts() | {"tokens": self.tokens, "nodes": nodes, "edges": edges})

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The same as a ``networkx.MultiDiGraph``: attributes by name, edges keyed by side.

        Raises `AllHeadsError` without networkx, which comes with the extra ``graphs``.
        """
        made = extra("networkx", "graphs", "make a graph of it").MultiDiGraph(
            rule=self.rule, target=self.target, target_value=self.target_value, coverage=self.coverage
        )
        for node in self.nodes:
            plain = {key: value for key, value in asdict(node).items() if key not in ("name", "inflow")}
            sides = {f"left_out_{side}": flow.left_out for side, flow in node.inflow.items()}
            made.add_node(node.name, **plain, **sides)
        for edge in self.edges:
            made.add_edge(edge.source, edge.target, key=edge.side, weight=edge.weight, side=edge.side)
        return made

    def save(self, path: str | Path) -> Path:
        """Write ``.json``, which `AttributionGraph.load` reads, or ``.graphml`` for other tools.

        Raises `AllHeadsError` for another suffix, a path that cannot be written, or more JSON than would be read
        again; nothing is left behind then.
        """
        target = checked_path(path)
        if target.suffix not in (".json", ".graphml"):
            raise AllHeadsError("a file that ends in .json or .graphml", target.name, "Name it so.")
        if target.suffix == ".json":
            facts = asdict(replace(self, question=None))
            del facts["question"]
            text = json.dumps(sealed({"format": _VERSION, **facts}), indent=1)
            if len(text) > _LARGEST:
                raise AllHeadsError(
                    f"a graph of at most {_LARGEST:,} bytes", f"{len(text):,}", "Make one with a smaller budget."
                )
            write_whole(target, text)
        else:
            lines = extra("networkx", "graphs", "write GraphML").generate_graphml(self.to_networkx())
            write_whole(target, "\n".join(lines))
        return target

    @classmethod
    def load(cls, path: str | Path) -> AttributionGraph:
        """Read what `save` wrote as ``.json``. Raises `AllHeadsError` for anything else, and for what has changed."""
        path = named_path(path)
        try:
            facts = unsealed(read_json(path, dict[str, Any], _LARGEST))
            if facts.pop("format", None) != _VERSION:
                raise ValueError("another format")
            saved = vars(fitted(facts, _Saved))
            made = cls(**saved)
            made._check()
            return made
        except (OSError, ValueError) as error:
            raise AllHeadsError(
                "a graph that AttributionGraph.save wrote as .json", f"{path.name}: {error}", "Write it again."
            ) from None

    def _check(self) -> None:
        """Raise `ValueError` where nodes, edges and tokens are not of one graph."""
        names = {node.name for node in self.nodes}
        if not self.nodes or self.nodes[0].kind != "T" or len(names) < len(self.nodes):
            raise ValueError("nodes that do not begin with one target")
        for node in self.nodes:
            inside = node.position >= -1 and -1 <= node.layer <= _LAYERS
            if node.name != _name(node) or not inside:
                raise ValueError(f"a node {node.name!r} that is none")
            if node.position < 0 and node.kind != "C":
                raise ValueError(f"a node {node.name!r} without a token")
        if not names.issuperset(end for edge in self.edges for end in (edge.source, edge.target)):
            raise ValueError("edges between other nodes")
        flows = [number for node in self.nodes for flow in node.inflow.values() for number in vars(flow).values()]
        effects = [self.target_value, self.coverage, *(node.effect for node in self.nodes)]
        if not all(map(math.isfinite, [*effects, *flows, *(edge.weight for edge in self.edges)])):
            raise ValueError("numbers that are not finite")


@dataclass(frozen=True)
class _Saved:
    """What of a graph is in its file."""

    rule: str
    target: str
    tokens: list[str]
    target_value: float
    nodes: list[Node]
    edges: list[Edge]
    coverage: float


def _name(node: Node) -> str:
    """The name that a node of this kind, label and position has."""
    if node.kind in ("C", "T"):
        return {"C": "constants", "T": "target"}[node.kind]
    if node.kind == "E":
        return f"{node.label}@{node.position}"
    label = Label.parse(node.label)
    return f"{label}@{node.position}" if (label.kind, label.layer) == (node.kind, node.layer) else "another"
