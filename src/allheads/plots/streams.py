"""The residual stream of every token on its way through the layers, seen from its two widest directions."""

from __future__ import annotations

import plotly.graph_objects as go
import torch

from allheads.plots.activations import read
from allheads.plots.picture import Picture
from allheads.plots.style import figure
from allheads.plots.texts import one_text, token_names
from allheads.twin.prompt import Texts
from allheads.twin.twin import TwinBridge


def residual(twin: TwinBridge, tokens: Texts) -> Picture:
    r"""One line for each token: where its stream points before every layer and after the last.

    Streams are divided by their lengths, as the norms do that layers read through, and projected onto the two first
    principal components of all of them (but the first token's, whose stream is often a hundred times as long and
    points elsewhere). The title says how much of the variance these carry; hovering tells token, layer and length.

    Raises `AllHeadsError` for a text that cannot be read, and for twins with several stacks.

    >>> ah.plots.residual(twin, "The cat sat on the mat.")  # doctest: +SKIP
    """
    row = one_text(twin, tokens)
    twin.require_one_stack("draw its residual stream")
    layers = len(twin.banks)
    points = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(layers)), f"blocks.{layers - 1}.hook_resid_post"]
    streams = torch.stack([seen[0] for seen in read(twin, row, points)]).double()
    lengths = streams.norm(dim=-1, keepdim=True)
    directions = streams / lengths.clamp_min(1e-30)
    fitted = directions[:, min(1, row.shape[1] - 1) :].flatten(0, 1)
    centre = fitted.mean(0)
    _, spread, axes = torch.linalg.svd(fitted - centre, full_matrices=False)
    places = (directions - centre) @ axes[:2].T
    share = float((spread[:2] ** 2).sum() / (spread**2).sum().clamp_min(1e-300))
    lines = [
        go.Scatter(
            x=places[:, at, 0].tolist(),
            y=places[:, at, 1].tolist(),
            name=name,
            mode="lines+markers",
            marker={"size": [4] * layers + [9], "symbol": ["circle"] * layers + ["diamond"]},
            line={"width": 1},
            customdata=[[depth, f"{length:.3g}"] for depth, length in enumerate(lengths[:, at, 0].tolist())],
            hovertemplate="before layer %{customdata[0]}<br>length %{customdata[1]}",
        )
        for at, name in enumerate(token_names(twin, row))
    ]
    title = f"Where each token's stream points, layer by layer: {share:.0%} of the variance"
    return figure(lines, title, height=560, x="first component", y="second component")
