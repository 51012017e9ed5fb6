"""What an attribution says, as pictures: by token, by head, and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from allheads.circuits.attribution import Attribution
from allheads.plots.style import BAD, BOTH, GOOD, figure, heat_map
from allheads.plots.texts import shown_names


def tokens(found: Attribution) -> go.Figure:
    """What each token's embedding contributes: blue for the target, red against it."""
    values = found.embeddings if found.positions is None else found.embeddings + found.positions
    names = shown_names(found.tokens)
    title = f"{_name(found)} is {found.target_value:.2f}; embeddings give {float(values.sum()):.2f} of it"
    return _bars(names, values.tolist(), title, "token")


def heads(found: Attribution) -> go.Figure:
    """The effect of every ordinary head, summed over positions: layers up, heads across."""
    effects = found.heads.sum(-1)
    size = float(effects.abs().max())
    layers, count = effects.shape
    drawn = heat_map(
        effects.float().cpu(),
        f"Effect of ordinary heads on {_name(found)}",
        columns=("head", [str(head) for head in range(count)]),
        rows=("layer", [str(layer) for layer in range(layers)]),
        value="effect",
        limits=(-size, size),
    )
    return drawn.update_traces(colorscale=BOTH)


def layers(found: Attribution) -> go.Figure:
    """What each layer's heads and neurons write straight into the target."""
    sums = found.by_layer()
    names = [str(layer) for layer in range(len(sums["heads"]))]
    bars = [
        go.Bar(x=names, y=sums[kind].tolist(), name=kind, marker={"color": color})
        for kind, color in (("heads", GOOD), ("neurons", BAD))
    ]
    return figure(bars, f"Written straight into {_name(found)}", height=360, x="layer", y="logits")


def _name(found: Attribution) -> str:
    return escape(found.target.name, quote=False)


def _bars(names: Sequence[str], values: Sequence[float], title: str, x: str) -> go.Figure:
    colors = [GOOD if value >= 0 else BAD for value in values]
    drawn = figure(
        [go.Bar(x=list(names), y=list(values), marker={"color": colors})], title, height=360, x=x, y="logits"
    )
    return drawn.update_xaxes(type="category", tickangle=-60)
