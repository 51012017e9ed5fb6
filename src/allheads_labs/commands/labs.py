"""The command of every lab that is made of units: run what is not done yet, then print, write or draw what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from allheads.cli.console import explained, progress, step
from allheads.cli.documents import document, put
from allheads.disk import checked_path

if TYPE_CHECKING:
    from allheads_labs.lab import Lab, Result


def command(name: str) -> Callable[..., None]:
    """The command of one lab."""

    def run(
        quick: Annotated[bool, typer.Option("--quick", help="One seed of less, in under a minute.")] = False,
        seeds: Annotated[int | None, typer.Option(help="Seeds; 5 of them, or 1 if quick, unless said.")] = None,
        minutes: Annotated[float | None, typer.Option(help="Allow so much time: 15, or 1 if quick.")] = None,
        write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
        figure: Annotated[Path | None, typer.Option(help="Write the figure here: HTML, PNG or SVG.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        with explained():
            with step("Importing torch and TransformerLens"):
                from allheads_labs.figures import lab_figure
                from allheads_labs.registry import find
            lab = find(name)
            if figure is not None:
                checked_path(figure)
            if write is not None:
                document(write)
            results = _run(lab, quick, (1 if quick else lab.seeds) if seeds is None else seeds, minutes)
            if figure is not None:
                lab_figure(lab, results).save(figure)
            if write is not None:
                put(write, lab.tables(results))
        if as_json:
            typer.echo(json.dumps(_facts(lab, quick, results)))
        elif write is None:
            typer.echo("\n\n".join(lab.tables(results).values()))

    return run


def _run(lab: Lab, quick: bool, seeds: int, minutes: float | None) -> list[Result]:
    from allheads_labs.running import run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=progress, disable=not progress.is_terminal) as bar:
        task = bar.add_task(lab.name, total=len(lab.units(quick, seeds)))
        return run(lab, quick=quick, seeds=seeds, minutes=minutes, told=lambda _: bar.advance(task))


def _facts(lab: Lab, quick: bool, results: Sequence[Result]) -> dict[str, object]:
    return {
        "lab": lab.name,
        "version": lab.version,
        "quick": quick,
        "claims": [vars(claim) for claim in lab.claims(results)],
        "results": [result.to_dict() for result in results],
    }
