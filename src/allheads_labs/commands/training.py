"""``allheads lab training``: MLPs, their tied and their untied twins from the same start."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from allheads.cli.console import explained, progress, results, step
from allheads.errors import AllHeadsError

if TYPE_CHECKING:
    from allheads_labs.training.study import Run


def training(
    steps: Annotated[int, typer.Option(help="Steps of every run.")] = 600,
    seeds: Annotated[int, typer.Option(help="Seeds of every setting.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Train an MLP model, its tied and its untied twin from the same start, with and without regularisation."""
    with explained():
        if seeds < 1 or steps < 1:
            raise AllHeadsError("at least one seed and one step", f"{seeds} and {steps}", "The defaults are 3 and 600.")
        with step("Importing torch and TransformerLens"):
            from allheads_labs.training import study as experiment
        gap = experiment.gradient_gap()
        with Progress(console=progress, disable=not progress.is_terminal) as bar:
            task = bar.add_task("training", total=len(experiment.SETTINGS) * seeds * steps)
            runs = [
                experiment.train(setting, seed, steps, lambda: bar.advance(task))
                for seed in range(seeds)
                for setting in experiment.SETTINGS
            ]
    if as_json:
        typer.echo(json.dumps({"gradient_gap": gap, "runs": [run.to_dict() for run in runs]}))
        return
    typer.echo(f"Largest difference of a gradient, MLP and tied twin, float64, relative: {gap:.1e}")
    results().print(_table(runs, steps, seeds))


def _table(runs: list[Run], steps: int, seeds: int) -> Table:
    table = Table(title=f"Next byte of Python's documentation: {steps} steps, mean of {seeds} seeds and its spread")
    table.add_column("setting")
    for header in ("training loss", "held-out loss", "ms/step", "mean gate", "shut", "open", "parted"):
        table.add_column(header, justify="right")
    for name in dict.fromkeys(run.setting for run in runs):
        own = [run for run in runs if run.setting == name]
        held_out = [run.held_out[-1] for run in own]
        table.add_row(
            name,
            f"{statistics.mean(run.train[-1] for run in own):.4f}",
            f"{statistics.mean(held_out):.4f} ± {(max(held_out) - min(held_out)) / 2:.4f}",
            f"{1e3 * statistics.median(run.seconds_per_step for run in own):.1f}",
            *(
                f"{statistics.mean(getattr(run, column) for run in own):.3f}"
                for column in ("gates_mean", "gates_shut", "gates_open", "parted")
            ),
        )
    return table
