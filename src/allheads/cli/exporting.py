"""``allheads export``: what is known of heads and neurons, as folders of files that other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import allheads as ah
from allheads.cli.before_loading import check_files, check_labels, check_model
from allheads.cli.console import (
    AsJson,
    DeviceOption,
    DtypeOption,
    GroupHelp,
    ModelOption,
    explained,
    load_twin,
    step,
)
from allheads.errors import printable
from allheads.formats.new_folder import checked_folder

FolderOption = Annotated[Path, typer.Option(help="The new folder to write.")]

export = typer.Typer(add_help_option=False, no_args_is_help=True, help="Files for other tools.")


@export.callback()
def main(asked: GroupHelp = False) -> None:
    """Files for other tools."""


# More than five arguments, because typer makes an option of each.
def features(
    sweep: Annotated[Path, typer.Argument(help="What allheads sweep has written.")],
    out: FolderOption,
    model: ModelOption = "smollm2-135m",
    label: Annotated[list[str] | None, typer.Option(help="A neuron, L3.N812; once for each. All unless said.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a file for each neuron, as Neuronpedia and circuit-tracer fetch them: examples, histogram, logits."""
    check_files([sweep], "a file that allheads sweep has written")
    checked_folder(out)
    check_labels(label)
    check_model(model, device, dtype)
    with step(f"Reading {sweep}"):
        found = ah.corpus.Sweep.load(sweep)
    twin = load_twin(model, device, dtype)
    with step(f"Writing {out}"):
        ah.formats.write_features(twin, found, out, label)
    _say(model, out, out, as_json)


# More than five arguments, because typer makes an option of each.
def heads(
    files: Annotated[list[Path], typer.Argument(help="Text files; each is one text.")],
    out: FolderOption,
    model: ModelOption = "smollm2-135m",
    label: Annotated[
        list[str] | None, typer.Option(help="L3.A5, or a neuron, L3.N812; once for each. All heads unless said.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a text.")] = False,
    context: Annotated[int | None, typer.Option(help="Tokens in a window; 128, or the model's context.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Write the folder that HeadVis shows, for ordinary heads or for neurons with their openness."""
    check_files(files, "text files")
    checked_folder(out)
    check_labels(label)
    check_model(model, device, dtype)
    twin = load_twin(model, device, dtype)
    with step(f"Writing {out}"):
        ah.formats.write_headvis(twin, ah.corpus.TextFiles(files, lines), out, label, context=context)
    _say(model, out, out / "heads", as_json)


def _say(model: str, out: Path, counted: Path, as_json: bool) -> None:
    count = sum(path.is_file() for path in counted.iterdir())
    if as_json:
        typer.echo(json.dumps({"model": model, "out": str(out), "files": count}))
    else:
        typer.echo(f"{printable(str(out))}: {count:,} files of heads or neurons")


for command in (features, heads):
    export.command()(explained()(command))
