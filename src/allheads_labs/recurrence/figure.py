"""Recall against load and distance, and what a training step costs, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from allheads.plots.style import BAD, GOOD, LIMIT, figure
from allheads_labs.intervals import Interval
from allheads_labs.lab import Result
from allheads_labs.recurrence.findings import NAMES, best, recall_of, seconds_by_length
from allheads_labs.recurrence.learners import KINDS, Kind
from allheads_labs.recurrence.measures import cell

COLOURS = dict(zip(KINDS, (GOOD, LIMIT, BAD), strict=True))


def draw(results: Sequence[Result]) -> go.Figure:
    """Three panels; bars are 95 % intervals over seeds."""
    drawn = figure([], "Recall of key-value pairs at equal size", height=420, x="pairs", y="recall")
    chosen = best(results)
    # "4 pairs, length 256, distance 8" -> (4, 256, 8)
    cells = [tuple(int(word) for word in name.replace(",", "").split() if word.isdigit()) for name in _cells(chosen)]
    length = min(each[1] for each in cells)
    far = max(each[2] for each in cells if each[1] == length)
    loads = [each[0] for each in cells if each[1:] == (length, far)]
    heavy = [(each[1], each[2]) for each in cells if each[0] == max(loads)]
    for kind, own in chosen.items():
        by_load = {load: recall_of(own, cell(load, length, far)) for load in loads}
        by_distance = {at: recall_of(own, cell(max(loads), size, at)) for size, at in heavy}
        drawn.add_trace(_line(kind, by_load, ""))
        drawn.add_trace(_line(kind, by_distance, "2"))
        drawn.add_trace(_line(kind, {at: by[kind] for at, by in seconds_by_length(results).items()}, "3"))
    axis = drawn.layout.xaxis.to_plotly_json() | {"type": "log"}
    names = (f"pairs, {far} before", f"distance of one of {max(loads)} pairs", "length")
    for number, (name, domain) in enumerate(zip(names, ((0, 0.28), (0.36, 0.64), (0.74, 1)), strict=True), 1):
        drawn.layout[f"xaxis{number}"] = axis | {"title": {"text": name}, "domain": domain, "anchor": f"y{number}"}
    own = drawn.layout.yaxis.to_plotly_json()
    for number in (1, 2):
        drawn.layout[f"yaxis{number}"] = own | {"range": [0, 1.05], "anchor": f"x{number}"}
    drawn.layout.yaxis3 = own | {"title": {"text": "seconds a training step"}, "type": "log", "anchor": "x3"}
    return drawn


def _cells(chosen: Mapping[Kind, Sequence[Result]]) -> list[str]:
    return list(chosen["transformer"][0].found["accuracies"])


def _line(kind: Kind, values: Mapping[int, Interval], panel: str) -> go.Scatter:
    return go.Scatter(
        x=list(values),
        y=[each.mean for each in values.values()],
        error_y={"type": "data", "array": [each.half or 0.0 for each in values.values()]},
        name=NAMES[kind],
        legendgroup=kind,
        showlegend=not panel,
        mode="lines+markers",
        line={"color": COLOURS[kind]},
        xaxis=f"x{panel}",
        yaxis=f"y{panel}",
    )
