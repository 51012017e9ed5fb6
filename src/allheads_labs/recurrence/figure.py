"""Recall against load and distance, and what a training step costs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from allheads.plots.style import BAD, GOOD, LIMIT, figure
from allheads_labs.kit.figure import line
from allheads_labs.kit.lab import Result
from allheads_labs.kit.statistics import interval
from allheads_labs.recurrence.learners import KINDS
from allheads_labs.recurrence.report import NAMES, best, training_costs

COLOURS = dict(zip(KINDS, (GOOD, LIMIT, BAD), strict=True))


def draw(results: Sequence[Result]) -> go.Figure:
    """Three panels; bars are 95 % intervals over seeds."""
    drawn = figure([], "Recall of key-value pairs at equal size", height=420, x="pairs", y="recall")
    shares = best(results, "accuracies")
    shares[["pairs", "length", "distance"]] = shares["accuracies"].str.extract(r"(\d+)\D+(\d+)\D+(\d+)").astype(int)
    trained = shares[shares["length"] == shares["length"].min()]
    far = trained["distance"].max()
    by_load = trained[trained["distance"] == far]
    heaviest = by_load["pairs"].max()
    panels = (
        (f"pairs, {far} before", by_load, "pairs", (0, 0.28)),
        (f"distance of one of {heaviest} pairs", shares[shares["pairs"] == heaviest], "distance", (0.36, 0.64)),
        ("length", training_costs(results), "length", (0.74, 1)),
    )
    x, y = drawn.layout.xaxis.to_plotly_json(), drawn.layout.yaxis.to_plotly_json()
    for number, (title, rows, along, domain) in enumerate(panels, 1):
        for kind in KINDS:
            groups = rows[rows["kind"] == kind].groupby(along)["value"]
            look = {"name": NAMES[kind], "legendgroup": kind, "line": {"color": COLOURS[kind]}}
            axes = {"xaxis": f"x{number}", "yaxis": f"y{number}", "showlegend": number == 1}
            drawn.add_trace(line({at: interval(values) for at, values in groups}, **look, **axes))
        about: dict[str, Any] = {"title": {"text": title}, "domain": domain, "anchor": f"y{number}"}
        drawn.layout[f"xaxis{number}"] = x | {"type": "log"} | about
        drawn.layout[f"yaxis{number}"] = y | {"range": [0, 1.05], "anchor": f"x{number}"}
    drawn.layout.yaxis3 = y | {"title": {"text": "seconds a training step"}, "type": "log", "anchor": "x3"}
    return drawn
