"""``allheads lab training``: MLPs, their tied and their untied twins from the same start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from allheads import AllHeadsError
from allheads.cli.console import AsJson, explained, step
from allheads_labs.commands.lab import check_paths, deliver


def training(
    quick: Annotated[bool, typer.Option("--quick", help="Three settings, one seed, 40 steps: under a minute.")] = False,
    steps: Annotated[int | None, typer.Option(help="Steps of every run; 600, or 40 if quick, unless said.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of every setting; 3, or 1 if quick, unless said.")] = None,
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train an MLP model, its tied and its untied twin from the same start, with and without regularisation.

    Finished runs are kept in the cache: an interrupted command goes on where it was.
    """
    with explained():
        steps = (40 if quick else 600) if steps is None else steps
        seeds = (1 if quick else 3) if seeds is None else seeds
        if seeds < 1 or steps < 1:
            raise AllHeadsError("at least one seed and one step", f"{seeds} and {steps}", "The defaults are 3 and 600.")
        check_paths(write)
        with step("Importing torch and TransformerLens"):
            from allheads_labs.kit.running import run
            from allheads_labs.training.lab import lab
            from allheads_labs.training.measures import gradient_gap
        gap, this = gradient_gap(), lab(steps)
        results = run(this, quick=quick, seeds=seeds, minutes=math.inf)
        if not as_json:
            typer.echo(f"Largest difference of a gradient, MLP and tied twin, float64, relative: {gap:.1e}")
            typer.echo(f"Next byte of Python's documentation: {steps} steps, mean of {seeds} seeds and half its range")
        facts = {"gradient_gap": gap, "runs": [result.found for result in results]}
        deliver(this.tables(results), facts, write=write, as_json=as_json)
