"""write_report: a twin, what was verified of it, and one text, as one HTML file that needs nothing else.

1. See that the file can be written, before any work.
2. Run the text: attention patterns of the ordinary heads, gates of the neurons.
3. Build the figures, and what can be chosen in them.
4. Write the page beside its place, and move it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from allheads.disk import checked_path, write_whole
from allheads.errors import AllHeadsError
from allheads.plots import web
from allheads.plots.attention_view import attention
from allheads.plots.gate_maps import NeuronGates, mean_gate_map, neuron_gates, neuron_map
from allheads.plots.layer_errors import errors
from allheads.plots.packing import pack, short
from allheads.plots.page import Drawing, as_html, html_page, plot, table
from allheads.plots.token_names import token_names
from allheads.twin.prompt import Texts, one_row
from allheads.twin.twin import TwinBridge, require_twin
from allheads.verification.report import Report

#: Tokens of the text that are drawn, and weights of all attention patterns together.
LONGEST, BUDGET = 128, 4_500_000


def write_report(
    twin: TwinBridge, report: Report, tokens: Texts, path: str | Path, *, layers: Sequence[int] | None = None
) -> Path:
    """Write one self-contained HTML file and return its path.

    ``tokens`` is one text, or ids ``[pos]`` or ``[1 pos]``; its first 128 tokens are drawn, fewer where a model has
    so many heads that the file would grow beyond some 12 MB. The page says so. ``layers`` are those whose
    attention patterns and neurons can be chosen, all unless said.

    Raises `AllHeadsError` if the file cannot be written (nothing is left behind then), for a layer the twin does
    not have, for a report of another model, or for a text it cannot read.

    >>> import allheads as ah
    >>> report = ah.verify(source, twin, "The cat sat on the mat.")
    >>> write_report(twin, report, "The cat sat on the mat.", "twin.html").name
    'twin.html'
    """
    target = checked_path(path)
    shown = _checked_layers(twin, report, layers)
    whole = one_row(require_twin(twin), tokens)
    row = whole[:, : min(LONGEST, math.isqrt(BUDGET // (len(shown) * twin.cfg.n_heads)))]
    names = token_names(twin, row)
    gates = neuron_gates(twin, row, range(len(twin.blocks)))
    neurons, gate_error = _neuron_plot([gates[layer] for layer in shown], names)
    patterns = attention(twin, row, layers=shown)
    pictures = {
        "attention": patterns.drawing,
        "gates": plot(mean_gate_map(gates, names)),
        "neurons": neurons,
        "errors": plot(errors(report)),
    }
    fields = _verdict(report) | {
        "tokens": f"{row.shape[1]} tokens",
        "neuron_layers": "".join(f'<option value="{view}">layer {layer}</option>' for view, layer in enumerate(shown)),
        "rounding": f"{max(gate_error, patterns.data['error']):.4f}",
    }
    if row.shape[1] < whole.shape[1]:
        fields["tokens"] = f"the first {row.shape[1]} of {whole.shape[1]} tokens"
    title = f"{report.model} and its attention-only twin"
    write_whole(target, html_page(title, pictures, web.read("report.html"), fields))
    return target


def _neuron_plot(layers: Sequence[NeuronGates], names: Sequence[str]) -> tuple[Drawing, float]:
    """The neurons of one layer, the other layers to choose from, and the largest rounding of a gate in them."""
    figures = [neuron_map(gates, names) for gates in layers]
    packed = [pack(torch.tensor(figure.data[0].z)) for figure in figures]
    views = [
        {
            "title": figure.layout.title.text,
            "y": list(figure.data[0].y),
            "z": text,
            "customdata": [[short(size, 3) for size in row] for row in figure.data[0].customdata],
        }
        for figure, (text, _) in zip(figures, packed, strict=True)
    ]
    return plot(figures[0], views), max(error for _, error in packed)


def _checked_layers(twin: TwinBridge, report: Report, layers: Sequence[int] | None) -> list[int]:
    count = len(twin.blocks)
    if [proof.layer for proof in report.layers] != list(range(count)):
        raise AllHeadsError(
            f"a report of this twin, with {count} layers", f"{len(report.layers)}", "Make it with ah.verify."
        )
    shown = list(range(count)) if layers is None else list(layers)
    if not shown or len(set(shown)) < len(shown) or not all(0 <= layer < count for layer in shown):
        raise AllHeadsError(f"different layers from 0 to {count - 1}", f"{layers}", "Leave layers out for all.")
    return shown


def _verdict(report: Report) -> dict[str, str]:
    """The head of the page."""
    return {
        "model": as_html(report.model),
        "verdict": "source and twin are the same" if report.passed else "source and twin are NOT the same",
        "state": "passed" if report.passed else "failed",
        "failures": "".join(f"<li>{as_html(failure)}</li>" for failure in report.failures),
        "facts": table(["", *report.columns], report.rows()),
    }
