"""Errors against data, a panel for each target."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from allheads.plots.style import BAD, GOOD, INK, LIMIT, figure
from allheads_labs.lab import Result
from allheads_labs.selection.findings import NAMES, error_of, swept
from allheads_labs.selection.learners import KINDS, Kind
from allheads_labs.selection.targets import exponent

COLOURS = dict(zip(KINDS, (GOOD, LIMIT, BAD, INK), strict=True))
DASHES = dict(zip(KINDS, ("solid", "dash", "solid", "dot"), strict=True))


def draw(results: Sequence[Result]) -> go.Figure:
    """Test error by number of sequences, with 95 % intervals; the thin line has the slope of the theory."""
    settings = swept(results)
    drawn = figure([], "Error against data: who finds the tokens that matter?", height=440, x="", y="")
    width = 1 / len(settings)
    axes = drawn.layout.xaxis.to_plotly_json(), drawn.layout.yaxis.to_plotly_json()
    for number, ((target, _, _), own) in enumerate(settings.items(), 1):
        for kind in KINDS:
            drawn.add_trace(_line(kind, own[kind], number))
        theory = exponent(target)
        if theory is not None:
            drawn.add_trace(_theory(own["transformer"], theory, number))
        domain = [(number - 1) * width, number * width - 0.06]
        sizes = [int(n) for n in own["transformer"][0].found["errors"]]
        drawn.layout[f"xaxis{number}"] = axes[0] | {
            "type": "log",
            "title": {"text": f"{target}: training sequences"},
            "domain": domain,
            "anchor": f"y{number}",
            "tickvals": sizes,
            "ticktext": [f"{n:,}" for n in sizes],
        }
        title = {"title": {"text": "test error" if number == 1 else ""}}
        drawn.layout[f"yaxis{number}"] = axes[1] | {"type": "log", "dtick": "D2", "anchor": f"x{number}"} | title
    return drawn


def _line(kind: Kind, own: Sequence[Result], panel: int) -> go.Scatter:
    found = {int(n): error_of(own, n) for n in own[0].found["errors"]}
    return go.Scatter(
        x=list(found),
        y=[each.mean for each in found.values()],
        error_y={"type": "data", "array": [each.half or 0.0 for each in found.values()]},
        name=NAMES[kind],
        legendgroup=kind,
        showlegend=panel == 1,
        mode="lines+markers",
        line={"color": COLOURS[kind], "dash": DASHES[kind]},
        xaxis=f"x{panel}",
        yaxis=f"y{panel}",
    )


def _theory(own: Sequence[Result], exponent: float, panel: int) -> go.Scatter:
    sizes = [int(n) for n in own[0].found["errors"]]
    # Only the slope is predicted: the line begins where the transformer does.
    start = error_of(own, str(sizes[0])).mean
    return go.Scatter(
        x=sizes,
        y=[start * (n / sizes[0]) ** exponent for n in sizes],
        name="theory's slope",
        legendgroup="theory",
        showlegend=panel == 2,
        mode="lines",
        line={"color": INK, "width": 1},
        xaxis=f"x{panel}",
        yaxis=f"y{panel}",
    )
