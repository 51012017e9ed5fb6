"""One HTML file: figures and their data, plotly.js, a style and a short script, all inside it.

Whatever comes from the model or the text reaches the page in one of two ways: as JSON in a script element,
where every ``<`` is written ``\\u003c``, or escaped as HTML. A content security policy forbids the page to load
anything.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from torch import Tensor

from allheads.errors import AllHeadsError


@dataclass(frozen=True)
class Plot:
    """A figure, and the views a reader can choose from: what each changes in its one heat map."""

    figure: go.Figure
    views: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        drawn = json.loads(self.figure.to_json())
        if self.views:
            drawn["data"][0].pop("z")
        return {"figure": drawn, "views": list(self.views)}


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


def options(names: Iterable[str], step: int = 1) -> str:
    """The entries of a dropdown; their values, ``0, step, 2 step ...``, add up to the number of a view."""
    return "".join(f'<option value="{step * i}">{escape(name)}</option>' for i, name in enumerate(names))


def html_page(template: str, plots: dict[str, Plot], fields: dict[str, str]) -> str:
    """The whole page. ``fields`` are the template's further places, as HTML."""
    here = files("allheads.plots")
    data = json.dumps({name: plot.to_dict() for name, plot in plots.items()}, allow_nan=False)
    return Template(here.joinpath(template).read_text("utf-8")).substitute(
        fields,
        style=here.joinpath("report.css").read_text("utf-8"),
        script=here.joinpath("report.js").read_text("utf-8"),
        plotly=get_plotlyjs(),
        data=data.replace("<", "\\u003c"),
    )


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """The inside of a table, the first cell of each row its header, as HTML."""
    body = "".join(f"<tr><th>{escape(row[0])}</th>{_cells('td', row[1:])}</tr>" for row in rows)
    return f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody>"


def _cells(tag: str, values: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)


def checked_path(path: str | Path) -> Path:
    """A file that can be written. Raises `AllHeadsError` for a folder, or one in a folder that does not exist."""
    target = Path(path)
    if target.is_dir():
        raise AllHeadsError("a file to write to", f"the folder {target}", "Add a file name, such as report.html.")
    if not target.parent.is_dir():
        raise AllHeadsError("a path in a folder that exists", str(target), f"Create {target.parent} first.")
    return target


def write_page(target: Path, text: str) -> None:
    """All or nothing: into a new file beside the target, then in its place."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        raise AllHeadsError(f"to write {target}", f"{error.strerror}", "Choose a path that can be written.") from error
    finally:
        beside.unlink(missing_ok=True)
