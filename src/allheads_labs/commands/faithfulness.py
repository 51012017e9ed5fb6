"""``allheads faithfulness``: which attribution finds the parts that do the task?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from allheads import AllHeadsError
from allheads.cli.before_loading import check_model
from allheads.cli.console import AsJson, DeviceOption, DtypeOption, ModelOption, explained, load_twin, step
from allheads_labs.commands.lab import check_paths, deliver

#: Names of tasks, which are known before their texts are.
TASKS = ("objects", "agreement", "years")


def faithfulness(
    tasks: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(TASKS)}; all if none is named.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each task that the model gets right.")] = 28,
    model: ModelOption = "smollm2-135m",
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Keep the parts that an attribution ranks first, write means for the rest: how much of the answer is left?

    Finished tasks are kept in the cache: an interrupted run goes on where it was.
    """
    with explained():
        check_paths(write)
        for task in tasks or TASKS:
            if task not in TASKS:
                raise AllHeadsError(f"a task out of {', '.join(TASKS)}", repr(task), "Choose one.")
        check_model(model, device, dtype)
        with step("Importing torch, transformers and TransformerLens"):
            from allheads_labs.faithfulness.lab import lab
            from allheads_labs.kit.running import run
        twin = load_twin(model, device, dtype)
        for task in tasks or TASKS:
            this = lab(twin, task, prompts, seed)
            results = run(this, quick=False, seeds=1, minutes=math.inf)
            deliver(this.tables(results), results[0].found["outcomes"], write=write, as_json=as_json)
