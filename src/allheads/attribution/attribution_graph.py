"""An attribution graph: parts at positions, what flows between them, and how much of it is not shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allheads.attribution.confirm import Confirmation, confirm
from allheads.attribution.graph_content import PARTS, Edge, GraphContent, Node
from allheads.attribution.influence import Influence, influence, pruned
from allheads.attribution.neuronpedia.reading import from_neuronpedia
from allheads.attribution.neuronpedia.writing import as_neuronpedia
from allheads.attribution.question import Question
from allheads.disk import checked_path, named_path, write_whole
from allheads.errors import AllHeadsError, printable
from allheads.extras import extra
from allheads.result import Result, finite
from allheads.untrusted import fitted, read_json, sealed, unsealed

if TYPE_CHECKING:
    import networkx
    import pandas

#: Of a saved graph: its format, and bytes that are read at most, as many as Neuronpedia takes.
_VERSION, _LARGEST = 2, 10**8


@dataclass(frozen=True, repr=False)
class AttributionGraph(GraphContent, Result):
    """Nodes with the target first, in the order in which they were found, and the edges between them.

    ``question`` is what was asked; a graph that was read from a file has none. The rest is what is in its file, see
    `GraphContent`.
    """

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
        parts = [(node.label, node.position, node.effect) for node in self.parts if node.kind in "AXN"][:k]
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
        return sorted((node for node in self.nodes if node.kind in PARTS), key=lambda node: -abs(node.effect))

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

    def influence(self) -> Influence:
        """How much of what leads to the target passes each node, and circuit-tracer's two scores.

        See `allheads.attribution.influence`.

        >>> import allheads as ah
        >>> found = ah.graph(twin, "Mary and John", " Mary", budget=5).influence()
        >>> 0 <= found.completeness <= 1
        True
        """
        return influence(self)

    def pruned(self, nodes: float = 0.8, edges: float = 0.98) -> AttributionGraph:
        """The nodes, and of their edges those, that have together these shares of the influence on the target.

        As circuit-tracer prunes: tokens and the target stay, and parts without a way in or out go. What goes is added
        to what was left out.

        Raises `AllHeadsError` for shares outside [0, 1].

        >>> import allheads as ah
        >>> found = ah.graph(twin, "Mary and John", " Mary", budget=20)
        >>> len(found.pruned(nodes=0.5).parts) <= len(found.parts)
        True
        """
        return pruned(self, nodes, edges)

    def save(self, path: str | Path, *, format: Literal["allheads", "neuronpedia"] = "allheads") -> Path:
        """Write ``.json``, which `AttributionGraph.load` reads, or ``.graphml`` for other tools.

        ``format="neuronpedia"`` is the JSON that Neuronpedia, circuit-tracer and Anthropic's page draw; it is listed
        there under the name of the file.

        Raises `AllHeadsError` for another suffix or format, a path that cannot be written, or more JSON than would be
        read again; nothing is left behind then.

        >>> import allheads as ah
        >>> ah.graph(twin, "Mary and John", " Mary", budget=5).save("mary.json", format="neuronpedia").name
        'mary.json'
        """
        target = checked_path(path)
        if target.suffix not in (".json", ".graphml"):
            raise AllHeadsError("a file that ends in .json or .graphml", target.name, "Name it so.")
        if format not in ("allheads", "neuronpedia") or (format == "neuronpedia" and target.suffix != ".json"):
            raise AllHeadsError("format 'allheads', or 'neuronpedia' in a file .json", repr(format), "Choose one.")
        if target.suffix == ".graphml":
            made = self.to_networkx()
            for values in (
                made.graph,
                *(values for _, values in made.nodes(data=True)),
            ):  # XML has no control characters
                values.update({key: printable(value) for key, value in values.items() if isinstance(value, str)})
            lines = extra("networkx", "graphs", "write GraphML").generate_graphml(made)
            write_whole(target, "\n".join(lines))
            return target
        facts = as_neuronpedia(self, target.stem) if format == "neuronpedia" else self._sealed()
        text = json.dumps(facts, indent=1, allow_nan=False)
        if len(text) > _LARGEST:
            raise AllHeadsError(
                f"a graph of at most {_LARGEST:,} bytes", f"{len(text):,}", "Make one with a smaller budget."
            )
        write_whole(target, text)
        return target

    def _sealed(self) -> dict[str, Any]:
        facts = asdict(replace(self, question=None))
        del facts["question"]
        return sealed({"format": _VERSION, **facts})

    @classmethod
    def load(cls, path: str | Path) -> AttributionGraph:
        """Read what `save` wrote as ``.json``, in either format, or a graph of another tool in Neuronpedia's.

        Of another tool's graph, features become neurons, and what errors write counts as left out; see
        `allheads.attribution.neuronpedia.reading`.

        Raises `AllHeadsError` for anything else, and for what has changed.
        """
        path = named_path(path)
        try:
            facts = read_json(path, dict[str, Any], _LARGEST)
            if "metadata" in facts and "links" in facts:
                content = from_neuronpedia(facts)
            else:
                facts = unsealed(facts)
                if facts.pop("format", None) != _VERSION:
                    raise ValueError("another format")
                content = fitted(facts, GraphContent)
            content.check()
            return cls(**vars(content))
        except (OSError, ValueError) as error:
            raise AllHeadsError(
                "a graph that AttributionGraph.save wrote as .json, or one in Neuronpedia's format",
                f"{path.name}: {error}",
                "Write it again.",
            ) from None
