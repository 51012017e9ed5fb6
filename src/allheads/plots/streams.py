"""The residual stream of every token on its way through the layers, in the two directions of largest variance."""

from __future__ import annotations

import plotly.graph_objects as go
import torch

from allheads.errors import AllHeadsError
from allheads.plots.hook_values import hook_values
from allheads.plots.picture import Picture
from allheads.plots.principal_components import principal_components
from allheads.plots.style import figure
from allheads.plots.token_names import token_names
from allheads.twin.prompt import Texts, one_row
from allheads.twin.twin import TwinBridge, require_twin


def residual(twin: TwinBridge, tokens: Texts) -> Picture:
    r"""One line for each token: where its stream points before every layer and after the last.

    Streams are divided by their lengths, as the norms do that layers read through, and projected onto the two first
    principal components of all of them (but the first token's, whose stream is often a hundred times as long and
    points elsewhere). The title says how much of the variance these carry; hovering tells token, layer and length.

    Raises `AllHeadsError` for a text that cannot be read, and for an encoder with a decoder.

    >>> import allheads as ah
    >>> ah.plots.residual(twin, "The cat sat on the mat.").save("stream.html").name
    'stream.html'
    """
    row = one_row(require_twin(twin), tokens)
    layers = len(getattr(twin, "blocks", ()))
    if not layers:
        raise AllHeadsError("one stack of layers", f"{twin.cfg.architecture}, which has several", "Use ah.plots.graph.")
    points = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(layers)), f"blocks.{layers - 1}.hook_resid_post"]
    streams = torch.stack([stream[0] for stream in hook_values(twin, row, points).values()]).double()
    lengths = streams.norm(dim=-1, keepdim=True)
    directions = streams / lengths.clamp_min(1e-30)
    projected, shares = principal_components(directions, directions[:, min(1, row.shape[1] - 1) :])
    lines = [
        go.Scatter(
            x=projected[:, position, 0].tolist(),
            y=projected[:, position, 1].tolist(),
            name=name,
            mode="lines+markers",
            marker={"size": [4] * layers + [9], "symbol": ["circle"] * layers + ["diamond"]},
            line={"width": 1},
            customdata=[[depth, f"{length:.3g}"] for depth, length in enumerate(lengths[:, position, 0].tolist())],
            hovertemplate="before layer %{customdata[0]}<br>length %{customdata[1]}",
        )
        for position, name in enumerate(token_names(twin, row))
    ]
    title = f"Where each token's stream points, layer by layer: {float(shares[:2].sum()):.0%} of the variance"
    return figure(lines, title, height=560, x="first component", y="second component")
