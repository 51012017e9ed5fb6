"""``allheads sweep``: what all neurons and ordinary heads do over a text corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import allheads as ah
from allheads.cli.before_loading import check_files, check_model
from allheads.cli.console import AsJson, DeviceOption, DtypeOption, ModelOption, load_twin, results
from allheads.disk import checked_path

if TYPE_CHECKING:
    from allheads.corpus.sweep_result import Sweep

#: Rows of a table.
TOP = 8


# More than five arguments, because typer makes an option of each.
def sweep(
    files: Annotated[list[Path], typer.Argument(help="Text files; each is one text.")],
    out: Annotated[Path, typer.Option(help="Write checkpoints and the result here.")],
    model: ModelOption = "smollm2-135m",
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a text.")] = False,
    context: Annotated[int | None, typer.Option(help="Tokens in a window; 128, or the model's context.")] = None,
    batch: Annotated[int, typer.Option(help="Windows at a time.")] = 8,
    every: Annotated[int, typer.Option(help="Batches between checkpoints.")] = 16,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Count what every neuron and every ordinary head does over a corpus; stop and resume at will.

    With several processes: accelerate launch --multi_gpu --num_processes 2 -m allheads sweep ..., on processors too.
    """
    check_files(files, "text files")
    checked_path(out)
    check_model(model, device, dtype)
    from allheads.corpus import processes

    if processes.fewer_than_asked():
        typer.echo("allheads: accelerate has started one process; add --multi_gpu for several", err=True)
    twin = load_twin(model, device or processes.device(), dtype)
    texts = ah.corpus.TextFiles(files, lines)
    settings = ah.corpus.SweepSettings(context, batch, every)
    found = ah.corpus.sweep(twin, texts, settings, out=out, resume=resume)
    writes = processes.join()[0] == 0
    processes.leave()
    if writes and as_json:
        typer.echo(json.dumps(_facts(found, out)))
    elif writes:
        _print(found, out)


def _facts(found: Sweep, out: Path) -> dict[str, Any]:
    table = found.neurons()
    return {
        "model": found.settings["model"],
        "texts": found.settings["texts"],
        "windows": found.settings["windows"],
        "positions": found.statistics.positions,
        "n_neurons": len(table),
        "n_heads": len(found.settings["heads"]),
        "dead": int((table["state"] == "dead").sum()),
        "always_open": int((table["state"] == "always").sum()),
        "median_open": float(table["open"].median()),
        "token_driven": int((table["token"] > 0.5).sum()),
        "position_driven": int((table["position"] > 0.5).sum()),
        "out": str(out),
    }


def _print(found: Sweep, out: Path) -> None:
    from rich.table import Table

    console, facts = results(), _facts(found, out)
    console.print(
        f"{facts['model']} at {facts['positions']:,} positions of {facts['texts']:,} texts. Of {facts['n_neurons']:,} "
        f"neurons {facts['dead']} are dead, {facts['always_open']} are always open, {facts['token_driven']} are driven "
        f"by the token and {facts['position_driven']} by the position (more than half of the variance)."
    )
    neurons, heads = found.neurons(), found.heads()
    for by in ("token", "position"):
        table = Table(title=f"Neurons driven most by the {by}")
        columns = ["label", "open", "mean", "std", "token", "position", "largest", "text", "offset"]
        for name in columns:
            table.add_column(name, justify="left" if name == "label" else "right")
        for row in neurons.nlargest(TOP, by)[columns].to_dict("records"):
            table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    table = Table(title="Ordinary heads with the most attention to each role, of 1")
    for role in heads.columns[1:-1]:
        table.add_column(role)
    best = [heads.nlargest(TOP, role) for role in heads.columns[1:-1]]
    for rank in range(min(TOP, len(heads))):
        rows = [(top.iloc[rank], role) for top, role in zip(best, heads.columns[1:-1], strict=True)]
        table.add_row(*(f"{row['label']} {row[role]:.2f}" for row, role in rows))
    console.print(table)
    console.print(f"Written to {out}; read it with ah.corpus.Sweep.load.")
