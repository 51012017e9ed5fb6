"""``allheads coverage``: every family that TransformerLens knows, converted, refused or not built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from allheads.cli.console import AsJson, explained, progress, results, step
from allheads.cli.documents import put


def coverage(
    names: Annotated[list[str] | None, typer.Argument(help="Families; all of them if left out.")] = None,
    write: Annotated[Path | None, typer.Option(help="Put the table into this Markdown file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Build the smallest random model of each family, convert, verify and read it. Exit code 1 if one differs."""
    with explained():
        from rich.progress import track

        with step("Importing torch, transformers and TransformerLens"):
            from allheads_labs import zoo
            from allheads_labs.zoo.coverage import as_markdown, survey
        bar = track(names or zoo.names(), "Converting", console=progress(), disable=not progress().is_terminal)
        rows = [survey(name) for name in bar]
        if write is not None:
            put(write, {"coverage": as_markdown(rows)})
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows]))
    else:
        from rich.table import Table

        table = Table(title="The smallest random model of every family")
        for header in ("family", "outcome", "heads for", "error / bound", "output", "reason"):
            table.add_column(header)
        for row in rows:
            figures = (f"{row.tightness:.2f}", f"{row.difference:.0e}") if row.banks else ("", "")
            table.add_row(row.name, row.outcome, row.kind, *figures, row.reason)
        results().print(table)
    raise typer.Exit(1 if any(row.outcome == "differs" for row in rows) else 0)
