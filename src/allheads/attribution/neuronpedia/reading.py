"""A graph out of the JSON that Neuronpedia, circuit-tracer and Anthropic's page draw.

What allheads wrote comes back as it was, with pins and groups as they now are. Of other graphs:

- features become neurons and attention features heads, under their numbers; they are names, not parts of a twin;
- of several logits, the one that the file calls its target stays, or the most probable;
- a link says what its source gives a node, in units of that node. Here an edge is the part of the source's effect on
  the target that flows so: the link times the node's effect, over the node's activation (or all that it is given);
- what error nodes give is left out, and counted as that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from allheads.attribution.graph_content import Edge, GraphContent, Node
from allheads.attribution.neuronpedia.file_schema import GraphFile
from allheads.attribution.neuronpedia.others import from_others
from allheads.untrusted import fitted


def from_neuronpedia(content: dict[str, Any]) -> GraphContent:
    """The graph in a file. Raises `ValueError` for what is none, with the reason."""
    file = fitted(content, GraphFile, others=True)
    if (file.metadata.schema_version or 1) > 1:
        raise ValueError(f"version {file.metadata.schema_version} of the format, where 1 is read")
    ids = [node.node_id for node in file.nodes]
    if len(set(ids)) < len(ids):
        raise ValueError(f"two nodes called {next(name for name in ids if ids.count(name) > 1)!r}")
    if missing := {end for link in file.links for end in (link.source, link.target)}.difference(ids):
        raise ValueError(f"a link to {min(missing)!r}, which is no node")
    ours = file.metadata.generation_settings.get("allheads")
    return _ours(file, fitted(ours, _Ours)) if ours is not None else from_others(file)


@dataclass(frozen=True)
class _Ours:
    """What of a graph of allheads stands nowhere else."""

    version: int
    rule: str
    target: str
    target_value: float
    coverage: float
    tokens: list[str]
    constants: Node | None
    edges: list[tuple[int, dict[str, Any]]]
    notes: dict[str, str]


def _ours(file: GraphFile, ours: _Ours) -> GraphContent:
    if ours.version != 1:
        raise ValueError(f"version {ours.version} of what allheads writes, where 1 is read")
    nodes: list[Node] = []
    names: dict[str, str] = {}
    for each in file.nodes:
        if each.allheads is not None:
            node = fitted(each.allheads, Node)
            nodes.append(node)
            names[each.node_id] = node.name
        elif each.kind == "C":
            names[each.node_id] = "constants"
    nodes += [] if ours.constants is None else [ours.constants]
    if missing := {end for link in file.links for end in (link.source, link.target)} - names.keys():
        raise ValueError(f"a node {min(missing)!r} without what allheads has written of it")
    edges = [Edge(names[link.source], names[link.target], link.weight) for link in file.links]
    for at, edge in ours.edges:
        edges.insert(at, fitted(edge, Edge))
    marks = replace(
        file.qParams.marks.renamed(names), notes={n: t for n, t in ours.notes.items() if n in names.values()}
    )
    return GraphContent(ours.rule, ours.target, ours.tokens, ours.target_value, nodes, edges, ours.coverage, marks)
