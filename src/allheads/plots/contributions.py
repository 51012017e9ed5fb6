"""What an attribution says, as pictures: by token, by head, by layer, and as a waterfall to the logit."""

from __future__ import annotations

import math
from collections import defaultdict
from html import escape

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from allheads.attribution.attribution import Attribution
from allheads.attribution.places import Place, in_order, stream_of
from allheads.errors import AllHeadsError, printable
from allheads.plots.patches import on_image
from allheads.plots.picture import Picture
from allheads.plots.style import BAD, BOTH, GOOD, INK, figure, heat_map
from allheads.plots.token_names import place_name


def attribution(found: Attribution, by: str = "waterfall") -> Picture:
    """What an attribution found: blue is for the target, orange against it.

    ``by="token"``: what each embedding, patch or frame brings over all paths. ``"image"``: the same for the patches of
    an image, where they are in it. ``"head"``: the effect of every ordinary head over all paths, summed over positions.
    ``"layer"``: what heads and neurons of each layer write straight into the target. ``"waterfall"``: the same writes,
    one after the other, from the embeddings up to the target.

    Raises `AllHeadsError` for anything else, and for an image where there is none.

    >>> import allheads as ah
    >>> found = ah.attribute(twin, "When Mary and John", " Mary")
    >>> ah.plots.attribution(found, "head").save("heads.html").name
    'heads.html'
    """
    drawn = {"token": _tokens, "image": on_image, "head": _heads, "layer": _layers, "waterfall": _waterfall}
    if by not in drawn:
        raise AllHeadsError(f"by out of {', '.join(drawn)}", repr(by), "Name one of these.")
    return drawn[by](found)


def _tokens(found: Attribution) -> Picture:
    places: dict[Place, float] = defaultdict(float)
    tokens: dict[Place, str] = {}
    for begin, effects in found.begins.items():
        stream = stream_of(begin, found.begins)
        for position, effect in enumerate(effects.tolist()):
            places[stream, position] += effect
            tokens[stream, position] = found.question.token_of(begin, position, len(effects))
    order = in_order(places)
    values = [places[place] for place in order]
    names = [escape(place_name(place, tokens[place]), quote=False) for place in order]
    colors = [GOOD if value >= 0 else BAD for value in values]
    bars = go.Bar(x=names, y=values, marker={"color": colors})
    title = f"{target_name(found)} is {found.target_value:.2f}; what streams begin with gives {sum(values):.2f} of it"
    return figure([bars], title, height=360, x="token", y="logits").update_xaxes(type="category", tickangle=-60)


def by_token(found: Attribution) -> Float[Tensor, " pos"]:
    """What each token brings over all paths: its embedding, and its learned position where there is one."""
    return found.embeddings if found.positions is None else found.embeddings + found.positions


def _heads(found: Attribution) -> Picture:
    effects = {name: table.sum(-1) for name, table in found.effects.items() if not name.endswith("N")}
    if not effects:
        raise AllHeadsError("a network with ordinary heads", "none that ran", "Draw it by layer.")
    count, size = (max(float(part(row)) for row in effects.values()) for part in (len, _largest))
    rows = torch.stack([functional.pad(row, (0, int(count) - len(row)), value=math.nan) for row in effects.values()])
    drawn = heat_map(
        rows.float().cpu(),
        f"Effect of ordinary heads on {target_name(found)}",
        columns=("head", [str(head) for head in range(rows.shape[1])]),
        rows=("layer", [name.removesuffix(".A") for name in effects]),
        value="effect",
    )
    return drawn.update_traces(colorscale=BOTH, zmin=-size, zmax=size)


def _largest(row: Tensor) -> float:
    return float(row.abs().max())


def _layers(found: Attribution) -> Picture:
    sums = found.by_layer()
    bars = [
        go.Bar(x=list(sums), y=[layer[kind] for layer in sums.values()], name=kind, marker={"color": color})
        for kind, color in (("heads", GOOD), ("neurons", BAD))
    ]
    return figure(bars, f"Written straight into {target_name(found)}", height=360, x="layer", y="logits")


def _waterfall(found: Attribution) -> Picture:
    """Every write is counted once, so that what heads and neurons leave is what embeddings and constants write."""
    steps = [(f"{layer} {kind}", value) for layer, kinds in found.by_layer().items() for kind, value in kinds.items()]
    rest = found.target_value - sum(value for _, value in steps)
    steps.insert(0, ("the rest" if not found.rule.complete else "embeddings, constants", rest))
    bars = go.Waterfall(
        x=[name for name, _ in steps] + [target_name(found)],
        y=[value for _, value in steps] + [0.0],
        measure=["relative"] * len(steps) + ["total"],
        increasing={"marker": {"color": GOOD}},
        decreasing={"marker": {"color": BAD}},
        totals={"marker": {"color": INK}},
        connector={"visible": False},
    )
    drawn = figure([bars], f"How {target_name(found)} comes to {found.target_value:.2f}", height=420, x="", y="logits")
    return drawn.update_xaxes(type="category", tickangle=-60, tickfont={"size": 9})


def target_name(found: Attribution) -> str:
    """What is explained, escaped for plotly."""
    return escape(printable(found.target.name), quote=False)
