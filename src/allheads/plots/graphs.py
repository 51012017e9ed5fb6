"""An attribution graph as a picture: positions across, layers up."""

from __future__ import annotations

from collections import defaultdict
from html import escape

import plotly.graph_objects as go

from allheads.circuits.attribution_graph import AttributionGraph, Edge, Node
from allheads.plots.style import BAD, GOOD, figure
from allheads.plots.texts import shown_names

#: Edges that are drawn, largest first, and the widest in pixels.
EDGES, _WIDEST = 150, 6.0
#: The least width of a position, in nodes.
_STEP = 2
_SYMBOLS = {"A": "square", "N": "circle", "E": "triangle-up", "C": "diamond", "T": "star"}


def graph(found: AttributionGraph, *, edges: int = EDGES) -> go.Figure:
    """Nodes at their token and layer, as large as their effect; the largest edges between them.

    Squares are heads, circles neurons, triangles tokens; blue is for the target, red against it. Dotted edges lead into
    queries and keys. The title says how many edges are drawn; a node's hover text says how much of it is not kept.
    """
    drawn = sorted(found.edges, key=lambda edge: -abs(edge.weight))[:edges]
    places, centres = _places(found)
    widest = max((abs(edge.weight) for edge in drawn), default=1.0)
    lines = [_line(edge, places, widest) for edge in drawn]
    largest = max((abs(node.effect) for node in found.nodes if node.kind != "T"), default=1.0) or 1.0
    nodes = go.Scatter(
        x=[places[node.name][0] for node in found.nodes],
        y=[places[node.name][1] for node in found.nodes],
        mode="markers",
        marker={
            "symbol": [_SYMBOLS[node.kind] for node in found.nodes],
            "size": [8 + 20 * min(abs(node.effect) / largest, 1.0) ** 0.5 for node in found.nodes],
            "color": [GOOD if node.effect >= 0 else BAD for node in found.nodes],
            "line": {"width": 0},
        },
        text=[_told(node) for node in found.nodes],
        hovertemplate="%{text}<extra></extra>",
    )
    title = f"{escape(found.target, quote=False)}: {len(found.parts)} parts, {len(drawn)} of {len(found.edges)} edges"
    made = figure([*lines, nodes], title, height=720, x="token", y="layer").update_layout(showlegend=False)
    at = [centres[position] for position in range(len(found.tokens))]
    return made.update_xaxes(tickmode="array", tickvals=at, ticktext=shown_names(found.tokens), tickangle=-60)


def _places(found: AttributionGraph) -> tuple[dict[str, tuple[float, float]], dict[int, float]]:
    """Where nodes stand, and the middle of each position: those of one token and layer side by side.

    A position is as wide as it has nodes in one layer. Heads are half a layer below neurons.
    """
    cells: dict[tuple[int, float], list[str]] = defaultdict(list)
    for node in found.nodes:
        cells[node.position, node.layer + (0.5 if node.kind == "N" else 0.0)].append(node.name)
    widths = dict.fromkeys(range(-1, len(found.tokens)), _STEP)
    for (position, _), names in cells.items():
        widths[position] = max(widths[position], len(names))
    centres, end = {}, 0.0
    for position, width in sorted(widths.items()):
        centres[position] = end + width / 2
        end += width + 1
    places = {
        name: (centres[position] + rank - (len(names) - 1) / 2, height)
        for (position, height), names in cells.items()
        for rank, name in enumerate(names)
    }
    return places, centres


def _line(edge: Edge, places: dict[str, tuple[float, float]], widest: float) -> go.Scatter:
    (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
    share = abs(edge.weight) / widest
    return go.Scatter(
        x=[x0, x1],
        y=[y0, y1],
        mode="lines",
        opacity=0.15 + 0.6 * share,
        line={
            "width": max(0.5, _WIDEST * share),
            "color": GOOD if edge.weight >= 0 else BAD,
            "dash": "solid" if edge.side == "V" else "dot",
        },
        hoverinfo="skip",
    )


def _told(node: Node) -> str:
    name, token = shown_names([node.label, node.token], numbered=False)
    sides = "".join(
        f"<br>{side}: {flow.left_out:+.3f} of {flow.total:+.3f} left out" for side, flow in node.inflow.items()
    )
    return f"{name} at {token}<br>effect {node.effect:+.3f}{sides}"
