"""What commands share: options, progress on standard error, one line for bad input, exit codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import allheads as ah
from allheads.attribution.rules import RULES
from allheads.cli.before_loading import DTYPES, check_model
from allheads.errors import AllHeadsError, printable
from allheads.models.names import PACKAGED

if TYPE_CHECKING:
    from rich.console import Console

#: Options that several commands have, always under these names.
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Short name, folder, .gguf file, saved twin or hub id.",
        autocompletion=lambda: list(PACKAGED),
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Where it runs: cpu, cuda, mps ...", autocompletion=lambda: ["cpu", "cuda", "mps"])
]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, float64, bfloat16 or float16.", autocompletion=lambda: list(DTYPES))
]
RuleOption = Annotated[
    str, typer.Option(help=f"What is frozen: {', '.join(RULES)}.", autocompletion=lambda: list(RULES))
]
PositionOption = Annotated[int, typer.Option(help="After which token; -1 is the last.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


#: ``--help`` of a group of commands. Only to learn that it was not given, typer's own imports pydantic, a quarter of a
#: second before the help of any command in the group.
GroupHelp = Annotated[bool, typer.Option("--help", callback=_help, is_eager=True, help="Show this message and exit.")]

#: Columns of a table that is not shown on a terminal.
WIDE = 160


@cache
def _as_it_is() -> type[Console]:
    """A console to which nothing in a string is markup: it may be the name of a model, or a token.

    rich takes half a second to import, which `--help` does not wait for.
    """
    from rich.console import Console
    from rich.text import Text

    class AsItIs(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options | {"markup": False, "emoji": False})

    return AsItIs


def progress() -> Console:
    """Standard error."""
    return _as_it_is()(stderr=True)


def results() -> Console:
    """Standard output, wide enough for tables where it is a file or a pipe."""
    console = _as_it_is()()
    return console if console.is_terminal else _as_it_is()(width=WIDE)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on standard error what takes time; silent where that is not a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    started = time.perf_counter()
    progress().print(f"{what} ...")
    yield
    progress().print(f"  {time.perf_counter() - started:.1f} s")


def load_model(model: str, device: str | None = None, dtype: str | None = None) -> Any:
    """The model, or twin, of a name, as `ah.load` gives it; says what takes time."""
    check_model(model, device, dtype)
    with step("Importing torch, transformers and TransformerLens"):
        _ = ah.load
    with step(f"Loading {model}"):
        options: dict[str, Any] = {} if device is None else {"device": device}
        if dtype is not None:
            import torch

            options["dtype"] = getattr(torch, dtype)
        return ah.load(model, **options)


def load_twin(model: str, device: str | None = None, dtype: str | None = None) -> ah.TwinBridge:
    """The twin of a model by any name that `ah.load` takes, or the twin that is saved there."""
    source = load_model(model, device, dtype)
    if isinstance(source, ah.TwinBridge):
        return source
    with step("Turning every MLP neuron into attention heads"):
        return ah.convert(source)


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
