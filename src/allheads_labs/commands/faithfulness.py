"""``allheads faithfulness``: which attribution finds the parts that do the task?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from allheads.cli.console import explained, progress, step
from allheads.cli.documents import put

if TYPE_CHECKING:
    from allheads_labs.faithfulness.study import Outcome


def faithfulness(
    tasks: Annotated[list[str] | None, typer.Argument(help="objects, agreement, years; all if none is named.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each task that the model gets right.")] = 28,
    model: Annotated[str, typer.Option(help="A model's name, folder or hub id.")] = "smollm2-135m",
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list for each task, a line each.")] = False,
) -> None:
    """Keep the parts that an attribution ranks first, write means for the rest: how much of the answer is left?"""
    with explained():
        with step("Importing torch, transformers and TransformerLens"):
            import allheads as ah
            from allheads_labs.faithfulness.study import outcomes
            from allheads_labs.faithfulness.tasks import TASKS
        with step(f"Loading and converting {model}"):
            twin = ah.convert(ah.load(model))
        chosen = tasks or list(TASKS)
        with Progress(console=progress, disable=not progress.is_terminal) as bar:
            task = bar.add_task("prompts", total=len(chosen) * prompts)
            for name in chosen:
                rows = list(outcomes(twin, name, prompts, seed, lambda: bar.advance(task)))
                if write is not None:
                    put(write, {f"faithfulness:{name}": _table(rows)})
                if as_json:
                    typer.echo(json.dumps([row.to_dict() for row in rows]))
                elif write is None:
                    typer.echo(f"{name}\n\n{_table(rows)}\n")


def _table(rows: list[Outcome]) -> str:
    from allheads_labs.faithfulness.study import ORDERS, advantage, interval

    lines = [
        "| method | by size | by sign | by sign, overshoot penalised | by sign, more than gradient |",
        "| --- | --- | --- | --- | --- |",
    ]
    by = {(row.method, row.order): row for row in rows}
    for method in dict.fromkeys(row.method for row in rows):
        size, sign = (by[method, order] for order in ORDERS)
        cells = [_cell(interval(values)) for values in (size.areas, sign.areas, sign.strict)]
        more = _cell(advantage(sign, by["gradient", "sign"])) if method != "gradient" else ""
        lines.append(f"| `{method}` | {' | '.join(cells)} | {more} |")
    return "\n".join(lines)


def _cell(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
