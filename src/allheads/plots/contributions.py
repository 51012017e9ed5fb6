"""What an attribution says, as pictures: by token, by head, by layer, and as a waterfall to the logit."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribution import Attribution
from allheads.errors import AllHeadsError, printable
from allheads.plots.picture import Picture
from allheads.plots.style import BAD, BOTH, GOOD, INK, figure, heat_map
from allheads.plots.token_names import shown_names


def attribution(found: Attribution, by: str = "waterfall") -> Picture:
    """What an attribution found: blue is for the target, orange against it.

    ``by="token"``: what each embedding brings over all paths. ``"head"``: the effect of every ordinary head over all
    paths, summed over positions. ``"layer"``: what heads and neurons of each layer write straight into the target.
    ``"waterfall"``: the same writes, one after the other, from the embeddings up to the target.

    Raises `AllHeadsError` for anything else.

    >>> found = ah.attribute(twin, "When Mary and John", " Mary")  # doctest: +SKIP
    >>> ah.plots.attribution(found, "head")  # doctest: +SKIP
    """
    drawn = {"token": _tokens, "head": _heads, "layer": _layers, "waterfall": _waterfall}
    if by not in drawn:
        raise AllHeadsError(f"by out of {', '.join(drawn)}", repr(by), "Name one of these.")
    return drawn[by](found)


def _tokens(found: Attribution) -> Picture:
    values = by_token(found).tolist()
    colors = [GOOD if value >= 0 else BAD for value in values]
    bars = go.Bar(x=shown_names(found.tokens), y=values, marker={"color": colors})
    title = f"{_name(found)} is {found.target_value:.2f}; embeddings give {sum(values):.2f} of it"
    return figure([bars], title, height=360, x="token", y="logits").update_xaxes(type="category", tickangle=-60)


def by_token(found: Attribution) -> Float[Tensor, " pos"]:
    """What each token brings over all paths: its embedding, and its learned position where there is one."""
    return found.embeddings if found.positions is None else found.embeddings + found.positions


def _heads(found: Attribution) -> Picture:
    effects = found.heads.sum(-1)
    size = float(effects.abs().max())
    layers, count = effects.shape
    drawn = heat_map(
        effects.float().cpu(),
        f"Effect of ordinary heads on {_name(found)}",
        columns=("head", [str(head) for head in range(count)]),
        rows=("layer", [str(layer) for layer in range(layers)]),
        value="effect",
    )
    return drawn.update_traces(colorscale=BOTH, zmin=-size, zmax=size)


def _layers(found: Attribution) -> Picture:
    sums = found.by_layer()
    names = [str(layer) for layer in range(len(sums["heads"]))]
    bars = [
        go.Bar(x=names, y=sums[kind].tolist(), name=kind, marker={"color": color})
        for kind, color in (("heads", GOOD), ("neurons", BAD))
    ]
    return figure(bars, f"Written straight into {_name(found)}", height=360, x="layer", y="logits")


def _waterfall(found: Attribution) -> Picture:
    """Every write is counted once, so that what heads and neurons leave is what embeddings and constants write."""
    sums = found.by_layer()
    steps = [(f"L{layer} {kind}", float(sums[kind][layer])) for layer in range(len(sums["heads"])) for kind in sums]
    rest = found.target_value - sum(value for _, value in steps)
    steps.insert(0, ("the rest" if not found.rule.complete else "embeddings, constants", rest))
    bars = go.Waterfall(
        x=[name for name, _ in steps] + [_name(found)],
        y=[value for _, value in steps] + [0.0],
        measure=["relative"] * len(steps) + ["total"],
        increasing={"marker": {"color": GOOD}},
        decreasing={"marker": {"color": BAD}},
        totals={"marker": {"color": INK}},
        connector={"visible": False},
    )
    drawn = figure([bars], f"How {_name(found)} comes to {found.target_value:.2f}", height=420, x="", y="logits")
    return drawn.update_xaxes(type="category", tickangle=-60, tickfont={"size": 9})


def _name(found: Attribution) -> str:
    return escape(printable(found.target.name), quote=False)
