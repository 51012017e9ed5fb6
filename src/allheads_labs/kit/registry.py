"""Labs by name; a lab's package is imported when it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from allheads import AllHeadsError
from allheads_labs.kit.lab import Lab, Result

if TYPE_CHECKING:
    from allheads.plots import Picture

#: Name -> what it is about. The lab is the ``LAB`` of ``lab.py`` in the package of this name.
LABS = {
    "recurrence": "Recall by a transformer, an LSTM and a GRU of equal size: by load, distance, training; and what "
    "steps cost.",
    "selection": "Finding the tokens that matter: error by data, length and dimension, with attention and without.",
    "roles": "Do the heads of small transformers take roles before, with or after their ability? A ladder of them.",
    "translation": "An encoder-decoder on a language with planted links: does cross-attention find them, and does its "
    "twin?",
}


def find(name: str) -> Lab:
    """The lab of this name.

    Raises `AllHeadsError` if there is none, with the closest names.

    >>> find("recurence")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected the name of a lab, got 'recurence'. Did you mean recurrence?
    """
    if name not in LABS:
        raise unknown(name, LABS)
    return import_module(f"allheads_labs.{name}.lab").LAB


def lab_figure(lab: Lab, results: Sequence[Result]) -> Picture:
    """The figure of a lab's results, which can be saved like every other."""
    from allheads.plots import Picture

    return Picture(import_module(f"allheads_labs.{lab.name}.figure").draw(results))


def unknown(name: str, known: Iterable[str]) -> AllHeadsError:
    """The error for a name that no lab has."""
    close = difflib.get_close_matches(name, list(known), n=3)
    remedy = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(sorted(known))}."
    return AllHeadsError("the name of a lab", repr(name), remedy)
