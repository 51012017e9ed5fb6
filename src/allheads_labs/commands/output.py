"""What every lab's command does with its results: tables into a document, and JSON or tables to standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import typer

from allheads.cli.documents import document, put
from allheads.disk import checked_path


def check_paths(write: Path | None, figure: Path | None = None) -> None:
    """Raise `AllHeadsError` for a document or a figure that cannot be written, before long work begins."""
    if write is not None:
        document(write)
    if figure is not None:
        checked_path(figure)


def deliver(tables: Mapping[str, str], facts: object, *, write: Path | None, as_json: bool) -> None:
    """Tables into a document, facts as JSON; tables with their names to standard output if neither is asked for."""
    if write is not None:
        put(write, tables)
    if as_json:
        typer.echo(json.dumps(facts))
    elif write is None:
        typer.echo("\n\n".join(f"{name}\n\n{table}" for name, table in tables.items()))
