"""The command of every lab that needs no options of its own, and what all commands of labs do with results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from allheads.cli.console import AsJson, explained, step
from allheads.cli.documents import document, put, show
from allheads.disk import checked_path


def command(name: str) -> Callable[..., None]:
    """The command of one lab."""

    def run(
        quick: Annotated[bool, typer.Option("--quick", help="One seed of less, in under a minute.")] = False,
        seeds: Annotated[int | None, typer.Option(help="Seeds; 5 of them, or 1 if quick, unless said.")] = None,
        minutes: Annotated[float | None, typer.Option(help="Allow so much time: 15, or 1 if quick.")] = None,
        write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
        figure: Annotated[Path | None, typer.Option(help="Write the figure here: HTML, PNG or SVG.")] = None,
        as_json: AsJson = False,
    ) -> None:
        with explained():
            with step("Importing torch and TransformerLens"):
                from allheads_labs.kit import registry, running
            lab = registry.find(name)
            check_paths(write, figure)
            count = (1 if quick else lab.seeds) if seeds is None else seeds
            results = running.run(lab, quick=quick, seeds=count, minutes=minutes)
            if figure is not None:
                registry.lab_figure(lab, results).save(figure)
            facts = {
                "lab": lab.name,
                "version": lab.version,
                "quick": quick,
                "claims": [vars(claim) for claim in lab.claims(results)],
                "results": [result.to_dict() for result in results],
            }
            deliver(lab.tables(results), facts, write=write, as_json=as_json)

    return run


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
        show(tables)
