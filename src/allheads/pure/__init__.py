"""A twin as attention and nothing else, in one file: `export` writes it, `run` executes it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allheads.pure.exporter import export as export
    from allheads.pure.runner import run as run

# Imported when first used, so that the runner can be read and run without the rest of the package.
_HOME = {"export": "exporter", "run": "runner"}
__all__ = ["export", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'allheads.pure' has no attribute {name!r}")
    value = getattr(import_module(f"allheads.pure.{_HOME[name]}"), name)
    globals()[name] = value
    return value
