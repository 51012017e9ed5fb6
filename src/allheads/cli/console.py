"""What commands say beside their results: progress on standard error, one line for bad input, exit codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from allheads.errors import AllHeadsError

progress = Console(stderr=True)
#: Columns of a table that is not shown on a terminal.
WIDE = 160


def results() -> Console:
    """Standard output, wide enough for tables where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


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


@contextmanager
def explained() -> Iterator[None]:
    """One clear line and exit code 2 for bad input; exit code 130 when interrupted."""
    try:
        yield
    except AllHeadsError as error:
        typer.echo(f"allheads: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("allheads: interrupted", err=True)
        sys.exit(130)
