"""The figure of a lab, which can be saved like every other."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from allheads.labs.lab import Lab, Result
from allheads.plots.picture import Picture

#: Lab -> the module whose ``draw`` makes its figure of results.
_HOMES = {
    "recurrence": "allheads.plots.lab_recurrence",
    "roles": "allheads.plots.lab_roles",
    "selection": "allheads.plots.lab_selection",
    "translation": "allheads.plots.lab_translation",
}


def lab_figure(lab: Lab, results: Sequence[Result]) -> Picture:
    """The figure of a lab's results."""
    return Picture(import_module(_HOMES[lab.name]).draw(results))
