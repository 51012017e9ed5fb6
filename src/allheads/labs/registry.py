"""Labs by name; a lab's module is imported when it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module

from allheads.errors import AllHeadsError
from allheads.labs.lab import Lab

#: Name -> the module whose ``LAB`` it is.
HOMES = {
    "recurrence": "allheads.labs.recurrence.study",
    "translation": "allheads.labs.translation.study",
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
    return import_module(HOMES[name]).LAB


def unknown(name: str, known: Iterable[str]) -> AllHeadsError:
    """The error for a name that no lab has."""
    close = difflib.get_close_matches(name, list(known), n=3)
    remedy = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(sorted(known))}."
    return AllHeadsError("the name of a lab", repr(name), remedy)
