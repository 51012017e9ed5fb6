"""Errors against data, a panel for each target."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from allheads.plots.style import BAD, GOOD, INK, LIMIT, figure
from allheads_labs.kit.figure import line
from allheads_labs.kit.lab import Result
from allheads_labs.kit.statistics import interval
from allheads_labs.selection.learners import KINDS
from allheads_labs.selection.report import NAMES, SETTING, swept
from allheads_labs.selection.targets import exponent

COLOURS = dict(zip(KINDS, (GOOD, LIMIT, BAD, INK), strict=True))
DASHES = dict(zip(KINDS, ("solid", "dash", "solid", "dot"), strict=True))


def draw(results: Sequence[Result]) -> go.Figure:
    """Test error by number of sequences, with 95 % intervals; the thin line has the slope of the theory."""
    settings = swept(results).groupby(SETTING, sort=False)
    drawn = figure([], "Error against data: who finds the tokens that matter?", height=440, x="", y="")
    width = 1 / len(settings)
    x, y = drawn.layout.xaxis.to_plotly_json(), drawn.layout.yaxis.to_plotly_json()
    for number, ((target, *_), rows) in enumerate(settings, 1):
        drawn.add_traces(_lines(rows, number))
        sizes = rows["n"].unique().tolist()
        drawn.layout[f"xaxis{number}"] = x | {
            "type": "log",
            "title": {"text": f"{target}: training sequences"},
            "domain": [(number - 1) * width, number * width - 0.06],
            "anchor": f"y{number}",
            "tickvals": sizes,
            "ticktext": [f"{n:,}" for n in sizes],
        }
        title = {"title": {"text": "test error" if number == 1 else ""}}
        drawn.layout[f"yaxis{number}"] = y | {"type": "log", "dtick": "D2", "anchor": f"x{number}"} | title
    return drawn


def _lines(rows: pd.DataFrame, panel: int) -> list[go.Scatter]:
    """Every learner in one setting, and the slope of the theory if it has one."""
    axes = {"xaxis": f"x{panel}", "yaxis": f"y{panel}"}
    lines = []
    for kind in KINDS:
        points = {n: interval(values) for n, values in rows[rows["learner"] == kind].groupby("n")["value"]}
        look = {"line": {"color": COLOURS[kind], "dash": DASHES[kind]}, "showlegend": panel == 1}
        lines.append(line(points, name=NAMES[kind], legendgroup=kind, **look, **axes))
    theory = exponent(rows["target"].iloc[0])
    if theory is not None:
        # Only the slope is predicted: the line begins where the transformer does.
        sizes, start = lines[0].x, lines[0].y[0]
        falling = [start * (n / sizes[0]) ** theory for n in sizes]
        look = {"mode": "lines", "line": {"color": INK, "width": 1}, "showlegend": panel == 2}
        lines.append(go.Scatter(x=sizes, y=falling, name="theory's slope", legendgroup="theory", **look, **axes))
    return lines
