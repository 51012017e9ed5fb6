"""graph: which parts write into which, as a picture that can be walked through."""

from __future__ import annotations

from functools import partial
from typing import Any

from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.places import in_order, places_of
from allheads.attribution.question import Question
from allheads.attribution.rules import RULES, Rule
from allheads.errors import AllHeadsError, printable
from allheads.plots.cards import Card, cards
from allheads.plots.packing import short
from allheads.plots.pattern_sources import read_patterns
from allheads.plots.token_names import place_name
from allheads.plots.view import View
from allheads.twin.labels import Label

#: Edges that are drawn at first, and those that a page has at most, largest first.
EDGES, _MOST_EDGES = 150, 2000


def graph(found: AttributionGraph, *, edges: int = EDGES) -> View:
    """Layers upward, positions across: nodes as large as their effect, edges as wide as what flows.

    Squares are heads, circles neurons, triangles tokens; the largest have names. The grey line below a node is as long
    as the share of what it reads that comes from parts outside the graph. Hover or walk to a node to see its edges;
    click it, or press Enter, to pin it and see its card: what opens it, its pattern, what it writes, its error bound.
    A second pin shows the ways between the two. What is marked in the graph (`graph.marks`) is pinned, and notes and
    groups stand beside their nodes. The picture fits its box; Ctrl and the wheel, or two fingers, zoom. A
    graph that was read from a file does not know its twin, and has no cards.

    Args:
        found: from `ah.graph`.
        edges: how many are drawn at first, the largest; a slider shows more.

    >>> found = ah.graph(twin, "When Mary and John", (" Mary", " John"), budget=50)  # doctest: +SKIP
    >>> ah.plots.graph(found)  # doctest: +SKIP
    """
    data = graph_picture(found, edges)
    if found.question is not None:
        positions: dict[str, int] = {}
        for node in found.parts:
            if node.kind in "AXN":  # latents have no weights in the twin
                positions.setdefault(node.label, node.position)
        data["cards"] = cards(found.question, positions)
        data |= _patterns(found.question, data["cards"], list(positions))
    return View("graph", data, f"{found.target}: {len(found.parts)} parts")


def _patterns(question: Question, known: dict[str, Card], labels: list[str]) -> dict[str, Any]:
    """The patterns of parts; of neurons only where some attention shows none, which the cards of heads then say."""
    read = partial(read_patterns, question.twin, question.inputs, None, layers=None)
    try:
        return read(labels).to_dict()
    except AllHeadsError as reason:
        neurons = [label for label in labels if Label.parse(label).kind == "N"]
        for label in set(labels).intersection(known).difference(neurons):
            known[label]["unread"] = [*known[label].get("unread", []), str(reason)]
        return read(neurons).to_dict() if neurons else {}


def graph_picture(found: AttributionGraph, edges: int = EDGES) -> dict[str, Any]:
    """What the script of a graph draws, without cards."""
    return {"graph": graph_data(found, edges), "names": [], "heads": [], "cards": {}, "error": 0.0}


def graph_data(found: AttributionGraph, edges: int = EDGES) -> dict[str, Any]:
    """Plain values for JSON; of the edges the largest, and of every node's inflow what is not kept."""
    drawn = sorted(found.edges, key=lambda edge: -abs(edge.weight))[: max(edges, _MOST_EDGES)]
    rule = RULES.get(found.rule)
    places = places_of(found)
    tokens = {places[node.name]: node.token for node in found.nodes if node.kind == "E"}
    columns = {place: at for at, place in enumerate(in_order(places.values()))}
    return {
        "target": printable(found.target),
        "value": found.target_value,
        "rule": printable(found.rule),
        "held": _held(rule) if rule else "",
        "means": f"Asked: {rule.answers} Not seen: {rule.misses}" if rule else "",
        "position": found.nodes[0].position,
        "count": len(found.edges),
        "shown": edges,
        "flow": short(sum(abs(edge.weight) for edge in found.edges)),
        "coverage": short(found.coverage, 3),
        "columns": [place_name(place, tokens.get(place, "")) for place in columns],
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "label": printable(node.label),  # the target's is its name
                "layer": node.layer,
                "column": columns[places[node.name]] if node.name in places else -1,
                "effect": short(node.effect),
                "note": printable(found.marks.notes.get(node.name, "")),
                "left": {side: [short(flow.left_out), short(flow.total)] for side, flow in node.inflow.items()},
            }
            for node in found.nodes
        ],
        "pins": found.marks.pins,
        "groups": [[printable(group), members] for group, members in found.marks.groups.items()],
        "edges": [[edge.source, edge.target, short(edge.weight), edge.side] for edge in drawn],
    }


def _held(rule: Rule) -> str:
    names = {"norms": rule.norms, "attention patterns": rule.patterns, "gates": rule.gates}
    held = [name for name, frozen in names.items() if frozen]
    return f"{', '.join(held[:-1])} and {held[-1]} are held fixed.".capitalize() if len(held) > 1 else ""
