"""Ability and roles over training, and over the ladder."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from allheads.plots.style import BAD, GOOD, INK, LIMIT, figure
from allheads_labs.intervals import interval
from allheads_labs.lab import Result
from allheads_labs.roles.findings import by_setting, named, series, steps
from allheads_labs.roles.task import ATTRIBUTES

#: Series -> (name, colour, dash, what it is divided by so that 1 is the most there can be).
LINES = {
    "accuracy": ("accuracy", GOOD, "solid", 1.0),
    "found": ("weight on the right entity", LIMIT, "solid", 1.0),
    "looks": ("roles, where heads look (of 2 bits)", BAD, "solid", 2.0),
    "carries": ("roles, what they carry (of 2 bits)", BAD, "dot", 2.0),
}


def draw(results: Sequence[Result]) -> go.Figure:
    """Left the base over training, mean and 95 % intervals; right every setting's roles against its accuracy."""
    grouped = by_setting(results)
    base = next(iter(grouped))
    drawn = figure([], f"Roles of heads and ability, {ATTRIBUTES} attributes", height=440, x="step", y="")
    axes = drawn.layout.xaxis.to_plotly_json(), drawn.layout.yaxis.to_plotly_json()
    for name, look in LINES.items():
        drawn.add_trace(_course(grouped[base], name, *look))
    for setting, own in grouped.items():
        if setting[1] > 1:
            drawn.add_trace(_end(own, named(setting, base)))
    drawn.layout.xaxis = axes[0] | {"type": "log", "domain": [0, 0.52]}
    drawn.layout.yaxis = axes[1] | {"range": [0, 1.05]}
    drawn.layout.xaxis2 = axes[0] | {"title": {"text": "accuracy at the end"}, "domain": [0.62, 1], "anchor": "y2"}
    drawn.layout.yaxis2 = axes[1] | {"title": {"text": "roles, bits"}, "anchor": "x2"}
    drawn.layout.legend = {"orientation": "h", "y": -0.2}
    return drawn


def _course(own: Sequence[Result], name: str, label: str, colour: str, dash: str, most: float) -> go.Scatter:
    found = [interval(values) for values in zip(*(series(each)[name] for each in own), strict=True)]
    return go.Scatter(
        x=steps(own[0]),
        y=[each.mean / most for each in found],
        error_y={"type": "data", "array": [(each.half or 0.0) / most for each in found], "thickness": 1},
        name=label,
        mode="lines+markers",
        line={"color": colour, "dash": dash},
    )


def _end(own: Sequence[Result], label: str) -> go.Scatter:
    return go.Scatter(
        x=[series(each)["accuracy"][-1] for each in own],
        y=[series(each)["looks"][-1] for each in own],
        mode="markers",
        marker={"color": INK, "size": 8, "opacity": 0.7},
        name=label,
        hovertemplate=f"{label}<br>accuracy %{{x:.3f}}<br>%{{y:.2f}} bits<extra></extra>",
        showlegend=False,
        xaxis="x2",
        yaxis="y2",
    )
