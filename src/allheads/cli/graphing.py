"""``allheads graph``: which heads and neurons write into which, as a file for other tools or for pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    results,
    step,
)
from allheads.disk import checked_name, checked_path, named_path
from allheads.errors import AllHeadsError, printable

if TYPE_CHECKING:
    from allheads.attribution.attribution_graph import AttributionGraph

FORMATS = ("allheads", "neuronpedia")


# More than five arguments, because typer makes an option of each.
def graph(
    prompt: Annotated[str, typer.Argument(help="Text whose next token is asked about.")],
    target: Annotated[str, typer.Option(help="The token to explain, with its space: ' Mary'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file .json or .graphml; of neuronpedia a folder.")],
    versus: Annotated[str | None, typer.Option(help="A token it is compared with.")] = None,
    format: Annotated[
        str, typer.Option(help="allheads, or neuronpedia, which its pages and circuit-tracer's show.")
    ] = "allheads",
    budget: Annotated[int, typer.Option(min=1, help="Heads and neurons that are kept at most.")] = 100,
    name: Annotated[
        str | None, typer.Option(help="What neuronpedia's file is called, without .json; else by the prompt.")
    ] = None,
    prune: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Keep the nodes that have this share of the influence.")
    ] = 1.0,
    model: ModelOption = "smollm2-135m",
    rule: RuleOption = "half",
    position: PositionOption = -1,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Write the graph of a prompt: which heads and neurons write into which, on the way to a token."""
    check_text(prompt)
    check_rule(rule)
    _check_output(output, format)
    name = checked_name(name or _named(prompt, target, versus))
    check_model(model, device, dtype)
    check_targets(model, prompt, [target] if versus is None else [target, versus], position)
    twin = load_twin(model, device, dtype)
    with step("Growing the graph"):
        tokens = target if versus is None else (target, versus)
        found = ah.attribute(twin, prompt, tokens, rule=rule, position=position).graph(budget=budget)
        found = found if prune == 1.0 else found.pruned(prune)
    with step(f"Writing {output}"):
        written = found.save(output) if format == "allheads" else ah.formats.write_graph(found, output, name)
    if as_json:
        typer.echo(json.dumps(found.facts() | {"output": str(written), "bytes": written.stat().st_size}))
    else:
        _print(found, written)


def _named(prompt: str, target: str, versus: str | None) -> str:
    """The words of a prompt and its targets, as the name of a file."""
    return "-".join(re.findall(r"\w+", f"{prompt[-40:]} {target} {versus or ''}")).lower() or "graph"


def _check_output(output: Path, format: str) -> None:
    if format not in FORMATS:
        raise AllHeadsError(f"a format out of {', '.join(FORMATS)}", repr(format), "Choose one.")
    if format == "neuronpedia" and named_path(output).is_file():
        raise AllHeadsError("a folder", f"the file {output}", "Name a folder; it is made if need be.")
    if format == "allheads" and checked_path(output).suffix not in (".json", ".graphml"):
        raise AllHeadsError("a file that ends in .json or .graphml", output.name, "Name it so.")


def _print(found: AttributionGraph, written: Path) -> None:
    from rich.table import Table

    table = Table(title=f"{found.target}: {found.target_value:.4f}; {len(found.parts)} parts, {len(found.edges)} edges")
    for header in ("label", "position", "token", "effect"):
        table.add_column(header, justify="left" if header in ("label", "token") else "right")
    for node in found.parts[:12]:
        table.add_row(node.label, str(node.position), repr(node.token), f"{node.effect:+.4f}")
    console = results()
    console.print(table)
    console.print(printable(f"{found.coverage:.0%} of the edge weight into these is between them. Written: {written}"))
