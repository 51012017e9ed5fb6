"""The figure of a lab, as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import plotly.graph_objects as go

from allheads.labs.lab import Lab, Result
from allheads.plots.page import checked_path, write_page

#: Lab -> the module whose ``draw`` makes its figure of results.
_HOMES = {
    "recurrence": "allheads.plots.lab_recurrence",
    "translation": "allheads.plots.lab_translation",
}


def lab_figure(lab: Lab, results: Sequence[Result]) -> go.Figure:
    """The figure of a lab's results."""
    return import_module(_HOMES[lab.name]).draw(results)


def write_figure(lab: Lab, results: Sequence[Result], path: str | Path) -> Path:
    """Write it, with plotly.js inside. Raises `AllHeadsError` for a path that cannot be written."""
    target = checked_path(path)
    write_page(target, lab_figure(lab, results).to_html(include_plotlyjs=True, full_html=True))
    return target
