"""Tokens on their way through the layers: paths in space that can be turned, and what made the steps."""

from __future__ import annotations

import plotly.graph_objects as go
import torch
from torch import Tensor

from allheads.plots import Picture
from allheads.plots.style import BAD, GOOD, INK, LIMIT, LINE, figure
from allheads.plots.token_names import shown_names
from allheads_labs.physics.paths import Trajectories

#: Low and high values of a potential.
_ENERGY = [[0.0, GOOD], [0.5, LIMIT], [1.0, BAD]]


def plot_trajectories(paths: Trajectories, energy: str | int | None = None) -> Picture:
    """The path of every token through the layers, in the three directions in which normed streams vary most.

    Hovering tells how long the next step is, how it turns, and what pushed most along or against it. With ``energy``, a
    head or the number of a layer, points have the colour of its potential there, see `Trajectories.energy`; else of
    their layer.

    Raises `AllHeadsError` for a head or a layer that is not there, or whose potential is not read.

    >>> physics.plot_trajectories(physics.trajectories(twin, "Mary and John"), "L12.A3").show()  # doctest: +SKIP
    """
    points, names = len(paths.stream), shown_names(paths.tokens)
    values = torch.arange(points)[:, None].expand(paths.stream.shape[:2]) if energy is None else paths.energy(energy)
    title = "layer" if energy is None else f"U of {energy if isinstance(energy, str) else f'layer {energy}'}, nats"
    traces = [_path(paths, at, name, values, title) for at, name in enumerate(names)]
    share = paths.explained.tolist()
    drawn = figure(traces, f"Paths through {points - 1} layers: {title}", height=640, x="", y="")
    style = {"backgroundcolor": "rgba(0,0,0,0)", "gridcolor": LINE, "zerolinecolor": LINE, "color": INK}
    axes = {
        axis: style | {"title": {"text": f"direction {i + 1}: {100 * share[i]:.0f} %"}}
        for i, axis in enumerate(("xaxis", "yaxis", "zaxis"))
    }
    return drawn.update_layout(scene=axes, legend={"font": {"size": 10}})


def _path(paths: Trajectories, at: int, name: str, values: Tensor, title: str) -> go.Scatter3d:
    low, high = float(values.min()), float(values.max())
    marker = {"size": 3.5, "color": values[:, at].tolist(), "cmin": low, "cmax": high, "colorscale": _ENERGY}
    if at == 0:
        marker |= {"colorbar": {"title": {"text": title, "side": "right"}, "thickness": 12, "x": -0.1}}
    return go.Scatter3d(
        **dict(zip("xyz", paths.projected[:, at].T.tolist(), strict=True)),
        name=name,
        mode="lines+markers",
        line={"color": LINE, "width": 3},
        marker=marker,
        customdata=[_next_step(paths, at, point) for point in range(len(paths.stream))],
        hovertemplate=f"{name}<br>%{{customdata}}<br>{title} %{{marker.color:.3g}}<extra></extra>",
    )


def _next_step(paths: Trajectories, at: int, point: int) -> str:
    """What happens next at a point of a path."""
    if point == len(paths.heads):
        return "end"
    turn = f", turned by {float(paths.turns[point - 1, at]):.0f} degrees" if point else ""
    pushes = ", ".join(f"{push.label} {push.push:+.1f}" for push in paths.pushed(at, point, 3))
    return f"before layer {point}: step {float(paths.lengths[point, at]):.1f}{turn}<br>{pushes}"


def plot_steps(paths: Trajectories) -> Picture:
    """Layer by layer, as medians over the tokens: what ordinary heads and neurons push, and how far the path turns."""
    layers = [f"L{layer}" for layer in range(len(paths.heads))]
    bars = [
        go.Bar(x=layers, y=pushes.sum(1).median(1).values.tolist(), name=name, marker={"color": colour})
        for name, pushes, colour in (("ordinary heads", paths.heads, GOOD), ("neurons", paths.neurons, BAD))
    ]
    turns = go.Scatter(
        x=layers[1:],
        y=paths.turns.median(1).values.tolist(),
        name="turn, degrees",
        yaxis="y2",
        mode="lines+markers",
        line={"color": LIMIT},
    )
    drawn = figure([*bars, turns], "Steps: who pushes, and how they turn", height=400, x="layer", y="push")
    title = {"text": "turn, degrees"}
    second = {"title": title, "overlaying": "y", "side": "right", "range": [0, 180], "showgrid": False}
    second |= {"tickvals": [0, 45, 90, 135, 180], "automargin": True}
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom"}
    return drawn.update_layout(barmode="stack", yaxis2=second, legend=legend, margin={"t": 80})
