"""How every picture looks: transparent, so that it is readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from allheads.plots.picture import Picture

#: From nothing to one colour of middling lightness: every step leads away from the page, light or dark, so that the
#: order is seen without seeing hues.
SCALE = [[0.0, "rgba(47,129,247,0)"], [1.0, "rgba(47,129,247,1)"]]
#: For values of both signs: orange, nothing for 0, blue.
BOTH = [[0.0, "rgba(224,102,42,1)"], [0.5, "rgba(128,136,147,0)"], [1.0, "rgba(47,129,247,1)"]]
#: Legible on white and on black; a page that knows its colours sets its own.
INK = "#808893"
LINE = "rgba(128,136,147,0.25)"
#: Told apart by people who do not see all colours.
GOOD, LIMIT, BAD = "#2f81f7", "#8a8f98", "#e0662a"


def figure(data: Sequence[Any], title: str, *, height: int, x: str, y: str) -> Picture:
    """A figure with a title and two named axes, in the common style."""
    axis = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "automargin": True}
    return Picture(
        data,
        layout={
            "template": "none",
            "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 15}},
            "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"bgcolor": "#1c2330", "font": {"color": "#f0f3f6"}, "bordercolor": "#1c2330"},
            "margin": {"l": 20, "r": 20, "t": 45, "b": 20},
            "height": height,
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": GOOD},
            "xaxis": axis | {"title": {"text": x, "standoff": 8}},
            "yaxis": axis | {"title": {"text": y, "standoff": 8}},
        },
    )


#: What an axis is called, and the names of its entries.
_Axis: TypeAlias = tuple[str, Sequence[str]]


def heat_map(values: Float[Tensor, "row column"], title: str, *, columns: _Axis, rows: _Axis, value: str) -> Picture:
    """Rows against columns; hovering shows both names and the value.

    The colours are those of values from 0 to 1: other limits are ``zmin`` and ``zmax`` of ``update_traces``.
    The names are taken as they are: plotly reads them as its small HTML, so they come escaped.
    """
    (x, column_names), (y, row_names) = columns, rows
    trace = go.Heatmap(
        z=values.numpy(),  # written as binary numbers, many times faster than a list
        x=list(column_names),
        y=list(row_names),
        zmin=0.0,
        zmax=1.0,
        colorscale=SCALE,
        colorbar={"title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate=f"{x} %{{x}}<br>{y} %{{y}}<br>{value} %{{z:.3f}}<extra></extra>",
    )
    drawn = figure([trace], title, height=min(1000, max(360, 150 + 15 * len(row_names))), x=x, y=y)
    drawn.update_xaxes(type="category", tickangle=-60, showgrid=False, tickfont={"size": 10})
    drawn.update_yaxes(type="category", showgrid=False, tickfont={"size": 10})
    return drawn
