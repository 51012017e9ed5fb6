"""Packages that only some features need: imported where they are used, or named with the command that installs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from allheads.errors import AllHeadsError


def extra(package: str, name: str, purpose: str) -> Any:
    """Import a package that comes with an extra. Raises `AllHeadsError` if it is not installed.

    >>> extra("nothing_of_this_name", "graphs", "write GraphML")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected nothing_of_this_name, to write GraphML, got a Python without it. \
pip install 'allheads[graphs]'
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as cause:
        raise AllHeadsError(
            f"{package}, to {purpose}", "a Python without it", f"pip install 'allheads[{name}]'"
        ) from cause
