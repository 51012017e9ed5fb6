"""What commands say beside their results: progress on standard error, one line for bad input, exit codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

import allheads as ah
from allheads.errors import AllHeadsError, printable

#: Options that several commands have.
ModelOption = Annotated[str, typer.Option(help="A model's name, folder, .gguf file, saved twin or hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

#: Columns of a table that is not shown on a terminal.
WIDE = 160


class _AsItIs(Console):
    """Nothing in a string is markup: it may be the name of a model, or a token."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False})


progress = _AsItIs(stderr=True)


def results() -> Console:
    """Standard output, wide enough for tables where it is a file or a pipe."""
    console = _AsItIs()
    return console if console.is_terminal else _AsItIs(width=WIDE)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on standard error what takes time; silent where that is not a terminal."""
    if not progress.is_terminal:
        yield
        return
    started = time.perf_counter()
    progress.print(f"{what} ...")
    yield
    progress.print(f"  {time.perf_counter() - started:.1f} s")


def load_twin(model: str, device: str | None = None) -> ah.TwinBridge:
    """The twin of a model by any name that `ah.load` takes, or the twin that is saved there; says what takes time."""
    with step("Importing torch, transformers and TransformerLens"):
        _ = ah.load
    with step(f"Loading and converting {model}"):
        source = ah.load(model) if device is None else ah.load(model, device=device)
        return source if isinstance(source, ah.TwinBridge) else ah.convert(source)


@contextmanager
def explained() -> Iterator[None]:
    """One clear line and exit code 2 for bad input or a lack of memory; exit code 130 when interrupted."""
    try:
        yield
    except AllHeadsError as error:
        _leave(str(error))
    except (MemoryError, RuntimeError) as error:
        # What torch raises without memory has no type of its own.
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        remedy = "Take a smaller model, text or batch, or a machine with more."
        _leave(str(AllHeadsError("enough memory", str(error).partition("\n")[0] or "too little", remedy)))
    except KeyboardInterrupt:
        typer.echo("allheads: interrupted", err=True)
        sys.exit(130)


def _leave(why: str) -> NoReturn:
    typer.echo(f"allheads: {printable(why)}".replace("\n", "\\n"), err=True)
    sys.exit(2)
