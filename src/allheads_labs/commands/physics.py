"""``allheads lab physics``: attention as motion in a potential, put to the test."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from allheads.cli.console import explained, progress, step
from allheads.cli.documents import document, put
from allheads.disk import checked_path
from allheads.errors import AllHeadsError


def physics(
    quick: Annotated[bool, typer.Option("--quick", help="Three layers and little text, in under a minute.")] = False,
    seeds: Annotated[int, typer.Option(help="Of everything random; intervals are ranges over them.")] = 5,
    model: Annotated[str, typer.Option(help="A model's name, folder or hub id.")] = "smollm2-135m",
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write paths of tokens here: HTML, PNG or SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Potentials and their gradients, memory matrices, motion, paths, segments and probes, each against chance.

    What is done is kept in the cache: an interrupted run goes on where it was.
    """
    with explained():
        if seeds < 1:
            raise AllHeadsError("at least one seed", str(seeds), "The default is 5.")
        if write is not None:
            document(write)
        if figure is not None:
            checked_path(figure)
        with step("Importing torch, transformers and TransformerLens"):
            import allheads as ah
            from allheads_labs import results_store as shelf
            from allheads_labs.physics import plot_trajectories, trajectories
            from allheads_labs.physics.study import PARTS, Size, prompts, ticks
            from allheads_labs.physics.tables import tables
        with step(f"Loading and converting {model}"):
            twin = ah.convert(ah.load(model))
        size = Size.of(twin, quick, seeds)
        found: dict[str, Any] = {}
        with Progress(console=progress, disable=not progress.is_terminal) as bar:
            for name, part in PARTS.items():
                task = bar.add_task(name, total=ticks(size, name))
                place = _place(name, model, size)
                kept = shelf.read(place)
                if kept is None:
                    kept = shelf.write(place, part(twin, size, partial(bar.advance, task)))
                found[name] = kept
                bar.update(task, completed=ticks(size, name))
        if figure is not None:
            plot_trajectories(trajectories(twin, prompts(twin, size)[0])).save(figure)
        if write is not None:
            put(write, tables(found))
    if as_json:
        typer.echo(json.dumps({"lab": "physics", "model": model, "quick": quick, "seeds": seeds, "parts": found}))
    elif write is None:
        typer.echo("\n\n".join(f"{name}\n\n{table}" for name, table in tables(found).items()))


def _place(part: str, model: str, size: object) -> Path:
    from allheads.models.cache import cache_root
    from allheads_labs.physics.study import VERSION

    name = hashlib.sha256(f"{VERSION} {part} {model} {size}".encode()).hexdigest()[:20]
    return cache_root() / "labs" / "physics" / f"{name}.json"
