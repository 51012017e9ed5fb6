"""``allheads theorems``: every construction on random inputs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from allheads import AllHeadsError
from allheads.cli.console import AsJson, explained, results, step

if TYPE_CHECKING:
    from rich.table import Table

    from allheads_labs.theorems.theorem import Verdict


def theorems(
    trials: Annotated[int, typer.Option(help="Random cases of each claim, in each precision.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Run every theorem on random inputs (20 tokens, 30 dimensions). Exit code 1 if one fails."""
    with explained():
        if trials < 1:
            raise AllHeadsError("at least one trial", str(trials), "The default is 100.")
        with step("Importing torch and TransformerLens"):
            from allheads_labs.theorems.gallery import THEOREMS
            from allheads_labs.theorems.theorem import judged
        verdicts = []
        for theorem in THEOREMS:
            with step(theorem.name):
                verdicts.append(judged(theorem, trials))
    if as_json:
        typer.echo(json.dumps([verdict.to_dict() for verdict in verdicts]))
    else:
        results().print(_table(verdicts, trials))
    raise typer.Exit(0 if all(verdict.holds for verdict in verdicts) else 1)


def _table(verdicts: list[Verdict], trials: int) -> Table:
    from rich.table import Table

    table = Table(title=f"Worst of {trials} random cases: 20 tokens, 30 dimensions")
    table.add_column("claim")
    for header in ("heads", "bias tokens", "float64", "bound", "float32", "bound", "holds"):
        table.add_column(header, justify="right")
    for v in verdicts:
        numbers = (v.error_float64, v.bound_float64, v.error_float32, v.bound_float32)
        cells = ["-" if number is None else f"{number:.1e}" for number in numbers]
        table.add_row(v.claim, str(v.heads), str(v.bias_tokens), *cells, "yes" if v.holds else "NO")
    return table
