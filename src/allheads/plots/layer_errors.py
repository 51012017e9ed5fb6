"""What verification found in each layer: the error, and the bound it has to stay under."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from allheads.plots.picture import Picture
from allheads.plots.style import BAD, GOOD, LIMIT, figure
from allheads.verification.report import Report


def errors(report: Report) -> Picture:
    """Error of every layer, in float64 on the source's own inputs, against its certified bound; log scale.

    A layer that fails is drawn as an orange cross. A bound of zero (heads that equal the activation exactly) or
    without limit (an activation outside the domain) has no place on the axis; hovering over the error tells it.

    >>> import allheads as ah
    >>> ah.plots.errors(ah.verify(source, twin, "The cat sat on the mat.")).save("errors.html").name
    'errors.html'
    """
    layers = [proof.layer for proof in report.layers]
    bound = go.Scatter(
        x=layers,
        y=[_drawable(proof.bound) for proof in report.layers],
        name="certified bound",
        mode="lines+markers",
        line={"color": LIMIT, "dash": "dash", "width": 1.5},
        marker={"size": 5},
        hovertemplate="layer %{x}<br>bound %{y:.2e}<extra></extra>",
    )
    error = go.Scatter(
        x=layers,
        y=[_drawable(proof.error) for proof in report.layers],
        name="error",
        mode="lines+markers",
        line={"color": GOOD, "width": 1.5},
        marker={
            "size": [7 if proof.passed else 13 for proof in report.layers],
            "color": [GOOD if proof.passed else BAD for proof in report.layers],
            "symbol": ["circle" if proof.passed else "x" for proof in report.layers],
        },
        customdata=[f"{p.bound:.2e}: {'keeps it' if p.passed else 'FAILS'}" for p in report.layers],
        hovertemplate="layer %{x}<br>error %{y:.2e}<br>bound %{customdata}<extra></extra>",
    )
    drawn = figure([bound, error], "Error and bound", height=380, x="layer", y="largest absolute difference")
    drawn.update_yaxes(type="log", exponentformat="power", dtick=1)
    drawn.update_xaxes(dtick=math.ceil(len(layers) / 16), showgrid=False)
    return drawn.update_layout(legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": 1.12})


def _drawable(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None
