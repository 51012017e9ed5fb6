"""``allheads explore``: a text, what the model predicts along it, and the heads and neurons that make it so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import allheads as ah
from allheads.cli.console import load_twin, step
from allheads.disk import checked_path
from allheads.errors import printable


# More than five arguments, because typer makes an option of each.
def explore(
    model: Annotated[str, typer.Argument(help="A model's name, folder, .gguf file, saved twin or hub id.")] = (
        "smollm2-135m"
    ),
    text: Annotated[str, typer.Option(help="The text to explore, up to 512 tokens.")] = (
        "When Mary and John went to the store, John gave a drink to"
    ),
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("explore.html"),
    rule: Annotated[str, typer.Option(help="What is frozen: value, gate, half, live or relp.")] = "half",
    position: Annotated[int, typer.Option(help="After which token the prediction is whose graph is drawn.")] = -1,
    budget: Annotated[int, typer.Option(min=1, help="Heads and neurons in that graph.")] = 60,
) -> None:
    """Write one page for a text: click a prediction to see what made it, a head or neuron to see what it does."""
    checked_path(output)
    twin = load_twin(model)
    with step("Explaining every prediction"):
        view = ah.plots.explore(twin, text, rule=rule, position=position, budget=budget)
    view.save(output)
    typer.echo(f"{printable(str(output))}: {output.stat().st_size / 1e6:.1f} MB, opens in any browser")
