"""One HTML file: pictures and their data, a style and scripts, all inside it.

Whatever comes from the model or the text reaches the page in one of two ways: as JSON in a script element,
where every ``<`` is written ``\\u003c``, or as HTML, escaped (`as_html`). A content security
policy forbids the page to load anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any, Literal, TypeAlias

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from allheads.errors import printable
from allheads.plots import web

#: What draws each kind of picture, in the order in which the scripts need each other.
_SCRIPTS = {
    "plot": ("base", "plots"),
    "attention": ("base", "pattern", "attention"),
    "graph": ("d3", "base", "pattern", "card", "layout", "graph", "graph_page"),
    "explore": ("d3", "base", "pattern", "card", "layout", "graph", "explore"),
}
Kind: TypeAlias = Literal["plot", "attention", "graph", "explore"]
#: A picture on a page: which script draws it, and its data, plain values for JSON.
Drawing: TypeAlias = tuple[Kind, Mapping[str, Any]]


def plot(figure: go.Figure, views: Sequence[Mapping[str, Any]] = ()) -> Drawing:
    """A plotly figure, and the views a reader can choose from: what each changes in its one heat map."""
    drawn = json.loads(figure.to_json())
    if views:
        drawn["data"][0].pop("z")
    return "plot", {"figure": drawn, "views": list(views)}


def html_page(
    title: str, pictures: Mapping[str, Drawing], body: str = "", fields: Mapping[str, str] | None = None
) -> str:
    """A whole page. ``pictures`` go to the elements of these ids in ``body``, whose ``$names`` are ``fields``."""
    scripts = dict.fromkeys(name for kind, _ in pictures.values() for name in _SCRIPTS[kind])
    plotly = f"<script>{get_plotlyjs()}</script>" if "plots" in scripts else ""
    return Template(web.read("page.html")).substitute(
        title=as_html(title),
        style=web.read("view.css", *(["page.css"] if body else [])),
        body=Template(body or '<main id="view"></main>').substitute(fields or {}),
        plotly=plotly,
        data=json.dumps(dict(pictures), allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
        script=web.read(*(f"{name}.js" for name in scripts), "start.js"),
    )


def as_html(text: str) -> str:
    r"""Text of others as it is, without markup and without control characters.

    >>> as_html("<b> \u202e")
    '&lt;b&gt; \\u202e'
    """
    return escape(printable(text))


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """The inside of a table, the first cell of each row its header, as HTML."""
    body = "".join(f"<tr><th>{as_html(row[0])}</th>{_cells('td', row[1:])}</tr>" for row in rows)
    return f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody>"


def _cells(tag: str, values: Iterable[str]) -> str:
    return "".join(f"<{tag}>{as_html(value)}</{tag}>" for value in values)
