"""Names that are imported when they are first used, so that importing a package is cheap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def importer(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names live in its modules; an empty home is a module of that name.

    A home that begins with dots is in another package, as in ``from ..models.attention import``.

    >>> importer("allheads", {"AllHeadsError": "errors"})("AllHeadsError").__name__
    'AllHeadsError'
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name] or name
        module = import_module(home if home.startswith(".") else f".{home}", package)
        return getattr(module, name) if homes[name] else module

    return find
