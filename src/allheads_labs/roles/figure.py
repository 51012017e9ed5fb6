"""Ability and roles over training, and over the ladder."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from allheads.plots.style import BAD, GOOD, INK, LIMIT, figure
from allheads_labs.kit.figure import line
from allheads_labs.kit.lab import Result
from allheads_labs.kit.statistics import interval
from allheads_labs.roles.report import named, series, steps, summary
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
    drawn = figure([], f"Roles of heads and ability, {ATTRIBUTES} attributes", height=440, x="step", y="")
    x, y = drawn.layout.xaxis.to_plotly_json(), drawn.layout.yaxis.to_plotly_json()
    base = [result for result in results if named(result.setting, results[0].setting) == "base"]
    for name, (label, colour, dash, most) in LINES.items():
        columns = zip(*(series(result)[name] for result in base), strict=True)
        points = [interval([value / most for value in values]) for values in columns]
        look = {"name": label, "line": {"color": colour, "dash": dash}}
        drawn.add_trace(line(dict(zip(steps(base[0]), points, strict=True)), **look))
    rows = summary(results)
    for name, points in rows[rows["heads"] > 1].groupby("name", sort=False):
        drawn.add_trace(
            go.Scatter(
                x=points["accuracy"].tolist(),
                y=points["looks"].tolist(),
                mode="markers",
                marker={"color": INK, "size": 8, "opacity": 0.7},
                name=name,
                hovertemplate=f"{name}<br>accuracy %{{x:.3f}}<br>%{{y:.2f}} bits<extra></extra>",
                showlegend=False,
                xaxis="x2",
                yaxis="y2",
            )
        )
    drawn.layout.xaxis = x | {"type": "log", "domain": [0, 0.52]}
    drawn.layout.yaxis = y | {"range": [0, 1.05]}
    drawn.layout.xaxis2 = x | {"title": {"text": "accuracy at the end"}, "domain": [0.62, 1], "anchor": "y2"}
    drawn.layout.yaxis2 = y | {"title": {"text": "roles, bits"}, "anchor": "x2"}
    drawn.layout.legend = {"orientation": "h", "y": -0.2}
    return drawn
