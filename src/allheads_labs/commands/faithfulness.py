"""``allheads faithfulness``: which attribution finds the parts that do the task?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from allheads.cli.console import explained, load_twin, step
from allheads_labs.commands.lab import check_paths, deliver


def faithfulness(
    tasks: Annotated[list[str] | None, typer.Argument(help="objects, agreement, years; all if none is named.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each task that the model gets right.")] = 28,
    model: Annotated[str, typer.Option(help="A model's name, folder or hub id.")] = "smollm2-135m",
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list for each task, a line each.")] = False,
) -> None:
    """Keep the parts that an attribution ranks first, write means for the rest: how much of the answer is left?

    Finished tasks are kept in the cache: an interrupted run goes on where it was.
    """
    with explained():
        check_paths(write)
        with step("Importing torch, transformers and TransformerLens"):
            from allheads_labs.faithfulness.lab import lab
            from allheads_labs.faithfulness.tasks import TASKS
            from allheads_labs.kit.running import run
        twin = load_twin(model)
        for task in tasks or TASKS:
            this = lab(twin, task, prompts, seed)
            results = run(this, quick=False, seeds=1, minutes=math.inf)
            deliver(this.tables(results), results[0].found["outcomes"], write=write, as_json=as_json)
