"""graph: which parts write into which, as a picture that can be walked through."""

from __future__ import annotations

from typing import Any

from allheads.attribution.attribution_graph import AttributionGraph
from allheads.errors import printable
from allheads.plots.cards import cards
from allheads.plots.packing import short
from allheads.plots.pattern_sources import read_patterns
from allheads.plots.token_names import visible
from allheads.plots.view import View

#: Edges that are drawn, largest first.
EDGES = 150


def graph(found: AttributionGraph, *, edges: int = EDGES) -> View:
    """Layers upward, positions across: nodes as large as their effect, edges as wide as what flows.

    Squares are heads, circles neurons, triangles tokens. Hover or walk to a node to see its edges; click it, or press
    Enter, for its card: what opens it, its pattern, what it writes, its error bound. A graph that was read from a file
    does not know its twin, and has no cards.

    Args:
        found: from `ah.graph`.
        edges: how many are drawn, the largest first.

    Raises:
        AllHeadsError: weights that cannot be read through the embeddings, as `allheads.weights.circuits` says.

    >>> found = ah.graph(twin, "When Mary and John", (" Mary", " John"), budget=50)  # doctest: +SKIP
    >>> ah.plots.graph(found)  # doctest: +SKIP
    """
    data = graph_picture(found, edges)
    if found.question is not None:
        positions: dict[str, int] = {}
        for node in found.parts:
            positions.setdefault(node.label, node.position)
        twin, ids = found.question.twin, found.question.ids
        patterns = read_patterns(twin, ids, None, list(positions), None).to_dict() if positions else {}
        data |= patterns | {"cards": cards(twin, ids, positions)}
    return View("graph", data, f"{found.target}: {len(found.parts)} parts")


def graph_picture(found: AttributionGraph, edges: int = EDGES) -> dict[str, Any]:
    """What the script of a graph draws, without cards."""
    names = [[visible(token) for token in found.tokens]]
    return {"graph": graph_data(found, edges), "names": names, "heads": [], "cards": {}, "error": 0.0}


def graph_data(found: AttributionGraph, edges: int = EDGES) -> dict[str, Any]:
    """Plain values for JSON; of the edges the largest, and of every node's inflow what is not kept."""
    drawn = sorted(found.edges, key=lambda edge: -abs(edge.weight))[:edges]
    return {
        "target": printable(found.target),
        "value": found.target_value,
        "rule": printable(found.rule),
        "position": found.nodes[0].position,
        "count": len(found.edges),
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "label": printable(node.label),  # the target's is its name
                "layer": node.layer,
                "position": node.position,
                "effect": short(node.effect),
                "left": {side: [short(flow.left_out), short(flow.total)] for side, flow in node.inflow.items()},
            }
            for node in found.nodes
        ],
        "edges": [[edge.source, edge.target, short(edge.weight), edge.side] for edge in drawn],
    }
