"""One HTML file: figures and their data, plotly.js, a style and a short script, all inside it.

Whatever comes from the model or the text reaches the page in one of two ways: as JSON in a script element,
where every ``<`` is written ``\\u003c``, or escaped as HTML. A content security policy forbids the page to load
anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from torch import Tensor

from allheads.proof.report import Report


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


def html_page(report: Report, plots: dict[str, Plot], fields: dict[str, str]) -> str:
    """The whole page. ``fields`` are the template's further places, as HTML."""
    here = files("allheads.plots")
    data = json.dumps({name: plot.to_dict() for name, plot in plots.items()}, allow_nan=False)
    verdict = "source and twin are the same" if report.passed else "source and twin are NOT the same"
    return Template(here.joinpath("report.html").read_text("utf-8")).substitute(
        fields,
        model=escape(report.model),
        verdict=verdict,
        state="passed" if report.passed else "failed",
        failures="".join(f"<li>{escape(failure)}</li>" for failure in report.failures),
        facts=_facts(report),
        style=here.joinpath("report.css").read_text("utf-8"),
        script=here.joinpath("report.js").read_text("utf-8"),
        plotly=get_plotlyjs(),
        data=data.replace("<", "\\u003c"),
    )


def _facts(report: Report) -> str:
    """The rows of the table: figure, value, the same by `closed`, threshold."""
    limits = report.thresholds
    rows = (
        ("largest logit difference", report.max_logit_error, report.max_logit_error_closed, limits.max_logit_error),
        ("mean KL divergence, nats", report.mean_kl, report.mean_kl_closed, limits.mean_kl),
        ("largest KL divergence, nats", report.max_kl, None, None),
        ("the source's own rounding noise in its logits", report.noise_floor, None, None),
    )
    cells = [[name, *("" if v is None else f"{v:.1e}" for v in values)] for name, *values in rows]
    cells.append(["loss of source, of twin", f"{report.loss_source:.6f}, {report.loss_twin:.6f}", "", ""])
    cells.append(["same most likely token", f"{report.top1_agreement:.2%}", "", ""])
    cells.append(["activations outside the certified domain", str(report.domain_violations), "", "0"])
    head = ["", f"{report.evaluation}, patterns in {report.pattern_dtype}", "closed", "threshold"]
    body = "".join(f"<tr><th>{escape(r[0])}</th>{_cells('td', r[1:])}</tr>" for r in cells)
    return f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody>"


def _cells(tag: str, values: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)
