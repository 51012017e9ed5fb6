"""A twin as attention and nothing else, in one file: `export` writes it, `run` executes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.pure.exporter import export as export
    from allheads.pure.runner import run as run

# Imported when first used, so that the runner can be read and run without the rest of the package.
_HOME = {"export": "exporter", "run": "runner"}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
