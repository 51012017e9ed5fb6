"""One HTML file: pictures and their data, a style and scripts, all inside it.

Whatever comes from the model or the text reaches the page in one of two ways: as JSON in a script element,
where every ``<`` is written ``\\u003c``, or escaped as HTML. A content security policy forbids the page to load
anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any, Literal

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from torch import Tensor

from allheads.plots import web

#: What draws each kind of picture, in the order in which the scripts need each other.
_SCRIPTS = {
    "plot": ("base", "plots"),
    "attention": ("base", "pattern", "attention"),
    "graph": ("base", "pattern", "card", "flow", "graph"),
    "explore": ("base", "pattern", "card", "flow", "explore"),
}


@dataclass(frozen=True)
class Drawn:
    """A picture that a script of ours draws, and its data, plain values for JSON."""

    kind: Literal["plot", "attention", "graph", "explore"]
    data: Mapping[str, Any]


def plot(figure: go.Figure, views: Sequence[Mapping[str, Any]] = ()) -> Drawn:
    """A plotly figure, and the views a reader can choose from: what each changes in its one heat map."""
    drawn = json.loads(figure.to_json())
    if views:
        drawn["data"][0].pop("z")
    return Drawn("plot", {"figure": drawn, "views": list(views)})


def html_page(
    title: str, pictures: Mapping[str, Drawn], body: str = "", fields: Mapping[str, str] | None = None
) -> str:
    """A whole page. ``pictures`` go to the elements of these ids in ``body``, whose further places are ``fields``."""
    scripts = dict.fromkeys(name for drawn in pictures.values() for name in _SCRIPTS[drawn.kind])
    plotly = f"<script>{get_plotlyjs()}</script>" if "plots" in scripts else ""
    data = {name: {"kind": drawn.kind, "data": drawn.data} for name, drawn in pictures.items()}
    return Template(web.read("page.html")).substitute(
        title=escape(title),
        style=web.read("view.css", *(["page.css"] if body else [])),
        body=Template(body or '<main id="view"></main>').substitute(fields or {}),
        plotly=plotly,
        data=json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        script=web.read(*(f"{name}.js" for name in scripts), "start.js"),
    )


def packed(weights: Float[Tensor, "row column"]) -> str:
    """Numbers in [0, 1] as whole 255ths, one byte each, row by row, in base64.

    >>> packed(torch.tensor([[0.0, 1.0]]))
    'AP8='
    """
    return base64.b64encode(levels(weights).numpy().tobytes()).decode()


def levels(weights: Float[Tensor, "*shape"]) -> Tensor:
    """The nearest 255th of each weight, as a byte."""
    return (weights.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()


def rounding(weights: Float[Tensor, "*shape"]) -> float:
    """The largest change `packed` makes."""
    return float((levels(weights) / 255.0 - weights).abs().max())


def options(names: Iterable[str]) -> str:
    """The entries of a dropdown; their values number the views of a plot."""
    return "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(names))


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """The inside of a table, the first cell of each row its header, as HTML."""
    body = "".join(f"<tr><th>{escape(row[0])}</th>{_cells('td', row[1:])}</tr>" for row in rows)
    return f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody>"


def _cells(tag: str, values: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)
