"""``allheads lab physics``: attention as motion in a potential, put to the test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from allheads.cli.before_loading import check_model
from allheads.cli.console import AsJson, DeviceOption, DtypeOption, ModelOption, explained, load_twin, step
from allheads_labs.commands.lab import check_paths, deliver


def physics(
    quick: Annotated[bool, typer.Option("--quick", help="Three layers and little text, in under a minute.")] = False,
    seeds: Annotated[int, typer.Option(help="Of everything random; intervals are ranges over them.")] = 5,
    model: ModelOption = "smollm2-135m",
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write paths of tokens here: HTML, PNG or SVG.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Potentials and their gradients, memory matrices, motion, paths, segments and probes, each against chance.

    What is done is kept in the cache: an interrupted run goes on where it was.
    """
    with explained():
        check_paths(write, figure)
        check_model(model, device, dtype)
        with step("Importing torch, transformers and TransformerLens"):
            from allheads_labs.kit.running import run
            from allheads_labs.physics import plot_trajectories, trajectories
            from allheads_labs.physics.lab import lab, parts
            from allheads_labs.physics.parts import Size, prompts
        twin = load_twin(model, device, dtype)
        this = lab(twin)
        results = run(this, quick=quick, seeds=seeds, minutes=math.inf)
        if figure is not None:
            plot_trajectories(trajectories(twin, prompts(twin, Size.of(twin, quick, seeds))[0])).save(figure)
        facts = {"lab": "physics", "model": model, "quick": quick, "seeds": seeds, "parts": parts(results)}
        deliver(this.tables(results), facts, write=write, as_json=as_json)
