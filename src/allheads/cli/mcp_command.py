"""``allheads mcp``: a server of the Model Context Protocol, for assistants that ask about a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import allheads as ah
from allheads.cli.before_loading import check_model
from allheads.cli.console import DeviceOption, DtypeOption, ModelOption
from allheads.errors import AllHeadsError, printable
from allheads.extras import extra

if TYPE_CHECKING:
    from allheads.cli.mcp_answers import Answers

#: Methods of `Answers` that are tools.
TOOLS = ("model", "load", "attribute", "graph", "card", "ablate", "seen")
#: Letters of a refusal, which may quote what was asked.
LETTERS = 500
_BUSY = "The last question is still being answered: ask again in a moment."


# More than five arguments, because typer makes an option of each.
def mcp(
    model: ModelOption = "smollm2-135m",
    sweep: Annotated[
        Path | None, typer.Option(help="A sweep that allheads sweep wrote, to look neurons up in.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long a question may take.")] = 120.0,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve HTTP here, to this machine only; else stdio.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Serve an assistant: attribute, graph, card, ablate and sweep look-ups as tools of the Model Context Protocol."""
    extra("mcp", "assistants", "serve assistants")
    check_model(model, device, dtype)
    if sweep is not None and not sweep.is_file():
        raise AllHeadsError("a sweep that allheads sweep wrote", f"{sweep}, which is no file", "Check the path.")
    from allheads.cli.mcp_answers import Answers

    server = make_server(Answers(model, sweep, device, dtype), seconds)
    if port is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=port)


def make_server(answers: Answers, seconds: float) -> Any:
    """A server of the protocol's SDK whose tools are those of ``answers``, one question at a time."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
    from pydantic import ValidationError

    class Server(MCPServer):
        """Tells refusals, and arguments that do not fit, in a sentence and nothing else."""

        async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
            try:
                return await super().call_tool(name, arguments, context)
            except UnexpectedToolError:  # says that there was one; what it was stays here
                raise
            except ToolError as error:
                cause = error.__cause__
                if isinstance(cause, ValidationError):
                    cause = ToolError(_misfit(name, cause.errors()[0]))
                raise cause if isinstance(cause, ToolError) else error from None

    about = "A pretrained transformer whose heads (L3.A5) and MLP neurons (L3.N812) can be watched by label."
    server = Server("allheads", instructions=about, version=ah.__version__, log_level="WARNING")
    alone = threading.Lock()
    for name in TOOLS:
        server.add_tool(_within(getattr(answers, name), seconds, alone), name)
    return server


def _misfit(tool: str, problem: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of a call."""
    where, what = ".".join(map(str, problem["loc"])), str(problem["msg"])
    got = f"{where}: {what[:1].lower()}{what[1:]}"
    return str(AllHeadsError(f"arguments that fit {tool}", got, "Its schema says what it takes."))


def _within(tool: Callable[..., dict[str, Any]], seconds: float, alone: threading.Lock) -> Callable[..., Any]:
    """The same tool, off the server's own thread and within a time; what it refuses is told in a sentence.

    A question that takes longer is answered with that; what computes it is let go, and others wait for it to end.
    """
    import anyio
    from mcp.server.mcpserver.exceptions import ToolError

    @wraps(tool)
    async def answer(**arguments: Any) -> dict[str, Any]:
        if not alone.acquire(blocking=False):
            raise ToolError(_BUSY)

        begun = threading.Lock()  # by its thread, or by who takes the question back before that has begun

        def work() -> dict[str, Any]:
            if not begun.acquire(blocking=False):
                return {}
            try:
                return tool(**arguments)
            finally:
                alone.release()

        try:
            with anyio.move_on_after(seconds):
                return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        except AllHeadsError as error:
            raise ToolError(printable(str(error)).replace("\n", " ")[:LETTERS]) from error
        finally:
            if begun.acquire(blocking=False):
                alone.release()
        raise ToolError(f"No answer within {seconds:g} s: ask for a shorter text, or for fewer parts.")

    return answer
