"""``allheads lab training``: MLPs, their tied and their untied twins from the same start."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from allheads import AllHeadsError
from allheads.cli.console import explained, step
from allheads_labs.commands.lab import deliver


def training(
    steps: Annotated[int, typer.Option(help="Steps of every run.")] = 600,
    seeds: Annotated[int, typer.Option(help="Seeds of every setting.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Train an MLP model, its tied and its untied twin from the same start, with and without regularisation.

    Finished runs are kept in the cache: an interrupted command goes on where it was.
    """
    with explained():
        if seeds < 1 or steps < 1:
            raise AllHeadsError("at least one seed and one step", f"{seeds} and {steps}", "The defaults are 3 and 600.")
        with step("Importing torch and TransformerLens"):
            from allheads_labs.kit.running import run
            from allheads_labs.training.lab import lab
            from allheads_labs.training.measures import gradient_gap
        gap, this = gradient_gap(), lab(steps)
        results = run(this, quick=False, seeds=seeds, minutes=math.inf)
        if not as_json:
            typer.echo(f"Largest difference of a gradient, MLP and tied twin, float64, relative: {gap:.1e}")
            typer.echo(f"Next byte of Python's documentation: {steps} steps, mean of {seeds} seeds and half its range")
        facts = {"gradient_gap": gap, "runs": [result.found for result in results]}
        deliver(this.tables(results), facts, write=None, as_json=as_json)
