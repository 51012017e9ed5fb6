"""Labs by name; a lab's module is imported when it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module

from allheads.errors import AllHeadsError
from allheads_labs.lab import Lab

#: Name -> the module whose ``LAB`` it is, and what it is about.
HOMES = {
    "recurrence": (
        "allheads_labs.recurrence.study",
        "Recall by a transformer, an LSTM and a GRU of equal size: by load, distance, training; and what steps cost.",
    ),
    "selection": (
        "allheads_labs.selection.study",
        "Finding the tokens that matter: error by data, length and dimension, with attention and without.",
    ),
    "roles": (
        "allheads_labs.roles.study",
        "Do the heads of small transformers take roles before, with or after their ability? A ladder of them.",
    ),
    "translation": (
        "allheads_labs.translation.study",
        "An encoder-decoder on a language with planted links: does cross-attention find them, and does its twin?",
    ),
}


def find(name: str) -> Lab:
    """The lab of this name.

    Raises `AllHeadsError` if there is none, with the closest names.

    >>> find("recurence")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected the name of a lab, got 'recurence'. Did you mean recurrence?
    """
    if name not in HOMES:
        raise unknown(name, HOMES)
    return import_module(HOMES[name][0]).LAB


def unknown(name: str, known: Iterable[str]) -> AllHeadsError:
    """The error for a name that no lab has."""
    close = difflib.get_close_matches(name, list(known), n=3)
    remedy = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(sorted(known))}."
    return AllHeadsError("the name of a lab", repr(name), remedy)
