"""``allheads explore``: a text, what the model predicts along it, and the heads and neurons that make it so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import allheads as ah
from allheads.cli.before_loading import check_model, check_rule, check_targets, check_text
from allheads.cli.console import (
    AsJson,
    DeviceOption,
    DtypeOption,
    ModelOption,
    PositionOption,
    RuleOption,
    load_twin,
    step,
)
from allheads.disk import checked_path
from allheads.errors import printable


# More than five arguments, because typer makes an option of each.
def explore(
    text: Annotated[str, typer.Argument(help="The text to explore, up to 512 tokens.")] = (
        "When Mary and John went to the store, John gave a drink to"
    ),
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("explore.html"),
    model: ModelOption = "smollm2-135m",
    rule: RuleOption = "half",
    position: PositionOption = -1,
    versus: Annotated[
        str | None, typer.Option(help="A token every prediction is compared with; else the second.")
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Heads and neurons in that prediction's graph.")] = 60,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Write one page for a text: click a prediction to see what made it, a head or neuron to see what it does."""
    check_text(text)
    check_rule(rule)
    checked_path(output)
    check_model(model, device, dtype)
    check_targets(model, text, [] if versus is None else [versus], position)
    twin = load_twin(model, device, dtype)
    with step("Explaining every prediction"):
        view = ah.plots.explore(twin, text, versus=versus, rule=rule, position=position, budget=budget)
    view.save(output)
    size = output.stat().st_size
    if as_json:
        typer.echo(json.dumps({"model": model, "text": text, "rule": rule, "output": str(output), "bytes": size}))
    else:
        typer.echo(f"{printable(str(output))}: {size / 1e6:.1f} MB, opens in any browser")
