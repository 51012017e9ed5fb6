"""Encoder self-, decoder self- and cross-attention of one sentence, of the model and of its twin, and planted links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from allheads.plots.style import INK, SCALE, figure
from allheads_labs.kit.lab import Result

KINDS = ("encoder", "decoder", "cross")


def draw(results: Sequence[Result]) -> go.Figure:
    """The last layer, heads averaged; rings are planted links. Upper row: the model, lower row: its twin."""
    example = next(one.found["example"] for one in results if (one.setting["layers"], one.setting["heads"]) == (2, 1))
    layer = max(int(name.split()[1]) for name in example["model"])
    names = [f"{which}: {kind}" for which in ("model", "twin") for kind in KINDS]
    drawn = make_subplots(2, 3, subplot_titles=names, horizontal_spacing=0.17, vertical_spacing=0.2)
    style = figure([], "Where the words come from", height=900, x="", y="").layout
    for row, which in enumerate(("model", "twin"), 1):
        for column, kind in enumerate(KINDS, 1):
            drawn.add_trace(_map(example, example[which][f"{kind} {layer}"], kind), row, column)
        drawn.add_trace(_rings(example), row, 3)
    axes = {
        name: {"gridcolor": None, "showgrid": False, "tickangle": -60 if name.startswith("x") else 0}
        for name in drawn.layout
        if name.startswith(("xaxis", "yaxis"))
    }
    drawn.update_layout(
        {name: style[name] for name in ("template", "title", "font", "paper_bgcolor", "plot_bgcolor", "height")}
    )
    drawn.update_layout(axes, showlegend=False)
    return drawn.update_yaxes(autorange="reversed")


def _map(example: Mapping[str, Any], pattern: Sequence[Sequence[Sequence[float]]], kind: str) -> go.Heatmap:
    mean = [[sum(column) / len(pattern) for column in zip(*lines, strict=True)] for lines in zip(*pattern, strict=True)]
    # A row of the decoder is named by what it writes, a column by what it reads.
    writes, reads = example["target"], ["<s>", *example["target"][:-1]]
    columns = reads if kind == "decoder" else example["source"]
    rows = example["source"] if kind == "encoder" else writes
    return go.Heatmap(
        z=mean,
        x=_names(columns),
        y=_names(rows),
        zmin=0,
        zmax=1,
        colorscale=SCALE,
        showscale=False,
    )


def _rings(example: Mapping[str, Any]) -> go.Scatter:
    # By name: on an axis of names, a number would be one more name.
    columns, rows = _names(example["source"]), _names(example["target"])
    return go.Scatter(
        x=[columns[here] for _, here in example["links"]],
        y=[rows[to] for to, _ in example["links"]],
        mode="markers",
        marker={"symbol": "circle-open", "size": 16, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
    )


def _names(words: Sequence[str]) -> list[str]:
    """Words with their places, as plotly takes them."""
    return [f"{at} {word}".replace("<", "&lt;") for at, word in enumerate(words)]
