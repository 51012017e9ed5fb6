"""graph: which parts write into which, as a picture that can be walked through."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from allheads.attribution.attribution_graph import AttributionGraph
from allheads.errors import AllHeadsError
from allheads.plots.cards import cards
from allheads.plots.pattern_sources import read_patterns
from allheads.plots.texts import one_text, visible
from allheads.plots.view import View
from allheads.twin.prompt import Texts
from allheads.twin.twin import TwinBridge

#: Edges that are drawn, largest first.
EDGES = 150


def graph(
    found: AttributionGraph, twin: TwinBridge | None = None, tokens: Texts | None = None, *, edges: int = EDGES
) -> View:
    """Layers upward, positions across: nodes as large as their effect, edges as wide as what flows.

    Squares are heads, circles neurons, triangles tokens. Hover or walk to a node to see its edges; click it, or press
    Enter, for its card: what opens it, its pattern, what it writes, its error bound. Cards need the twin and the text
    that the graph was made of.

    Args:
        found: from `ah.graph`.
        twin: the same twin; without it nodes have no cards.
        tokens: the same text.
        edges: how many are drawn, the largest first.

    Raises:
        AllHeadsError: a text of another length than the graph's, or a twin without text.

    >>> found = ah.graph(twin, "When Mary and John", (" Mary", " John"), budget=50)  # doctest: +SKIP
    >>> ah.plots.graph(found, twin, "When Mary and John")  # doctest: +SKIP
    """
    data: dict[str, Any] = {"graph": graph_data(found, edges), "names": [[visible(token) for token in found.tokens]]}
    if twin is None and tokens is None:
        return View("graph", data | {"heads": [], "cards": {}, "error": 0.0}, _title(found))
    if twin is None or tokens is None:
        raise AllHeadsError("the twin and the text of the graph", "one of them", "Pass both, or neither.")
    row = one_text(twin, tokens)
    if row.shape[1] != len(found.tokens):
        raise AllHeadsError(f"the graph's text, {len(found.tokens)} tokens", f"{row.shape[1]}", "Pass the same text.")
    places: dict[str, int] = {}
    for node in found.parts:
        places.setdefault(node.label, node.position)
    return View("graph", data | part_data(twin, row, places), _title(found))


def part_data(twin: TwinBridge, tokens: Int[Tensor, "1 pos"], places: dict[str, int]) -> dict[str, Any]:
    """What cards show of these parts: patterns over tokens and slots, reads and writes."""
    patterns = read_patterns(twin, tokens, None, list(places), None) if places else None
    shown = {} if patterns is None else patterns.to_dict()
    return shown | {"cards": cards(twin, tokens, places)}


def graph_data(found: AttributionGraph, edges: int = EDGES) -> dict[str, Any]:
    """Plain values for JSON; of the edges the largest, and of every node's inflow what is not kept."""
    drawn = sorted(found.edges, key=lambda edge: -abs(edge.weight))[:edges]
    return {
        "target": found.target,
        "value": found.target_value,
        "rule": found.rule,
        "position": found.nodes[0].position,
        "count": len(found.edges),
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "label": node.label,
                "layer": node.layer,
                "position": node.position,
                "effect": _short(node.effect),
                "left": {side: [_short(flow.left_out), _short(flow.total)] for side, flow in node.inflow.items()},
            }
            for node in found.nodes
        ],
        "edges": [[edge.source, edge.target, _short(edge.weight), edge.side] for edge in drawn],
    }


def _title(found: AttributionGraph) -> str:
    return f"{found.target}: {len(found.parts)} parts"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
