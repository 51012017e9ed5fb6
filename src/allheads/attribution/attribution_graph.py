"""An attribution graph: parts at positions, what flows between them, and how much of it is not shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from allheads.attribution.confirm import Confirmation, confirm
from allheads.attribution.edges import Side
from allheads.attribution.question import Question
from allheads.disk import checked_path, write_whole
from allheads.errors import AllHeadsError
from allheads.extras import extra

if TYPE_CHECKING:
    import networkx

#: Ordinary head, head that attends to an encoder, neuron.
PartKind = Literal["A", "X", "N"]
#: ``E`` token with its position, ``C`` constants, ``T`` target.
NodeKind = Literal[PartKind, "E", "C", "T"]

_VERSION = 1


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


@dataclass(frozen=True)
class AttributionGraph:
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

        >>> print(ah.graph(twin, prompt, pair).confirm())  # doctest: +SKIP
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

        Raises `AllHeadsError` for another suffix, or a path that cannot be written; nothing is left behind then.
        """
        target = checked_path(path)
        if target.suffix not in (".json", ".graphml"):
            raise AllHeadsError("a file that ends in .json or .graphml", target.name, "Name it so.")
        if target.suffix == ".json":
            facts = asdict(replace(self, question=None))
            del facts["question"]
            write_whole(target, json.dumps({"format": _VERSION, **facts}, indent=1))
        else:
            lines = extra("networkx", "graphs", "write GraphML").generate_graphml(self.to_networkx())
            write_whole(target, "\n".join(lines))
        return target

    @classmethod
    def load(cls, path: str | Path) -> AttributionGraph:
        """Read what `save` wrote as ``.json``. Raises `AllHeadsError` for anything else."""
        path = Path(path)
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts.pop("format") != _VERSION or not isinstance(facts["rule"], str):
                raise KeyError("format")
            nodes = [Node(**_with_inflow(node)) for node in facts.pop("nodes")]
            edges = [Edge(**edge) for edge in facts.pop("edges")]
            return cls(**facts, nodes=nodes, edges=edges)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AllHeadsError(
                "a graph that AttributionGraph.save wrote as .json", f"{path.name}: {error}", "Write it again."
            ) from None


def _with_inflow(node: dict[str, Any]) -> dict[str, Any]:
    return node | {"inflow": {cast(Side, side): Inflow(**flow) for side, flow in node["inflow"].items()}}
