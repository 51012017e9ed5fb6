"""The figure of a lab, which can be saved like every other."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from allheads.plots.picture import Picture
from allheads_labs.lab import Lab, Result

#: Lab -> the module whose ``draw`` makes its figure of results.
_HOMES = {
    "recurrence": "allheads_labs.recurrence.figure",
    "roles": "allheads_labs.roles.figure",
    "selection": "allheads_labs.selection.figure",
    "translation": "allheads_labs.translation.figure",
}


def lab_figure(lab: Lab, results: Sequence[Result]) -> Picture:
    """The figure of a lab's results."""
    return Picture(import_module(_HOMES[lab.name]).draw(results))
