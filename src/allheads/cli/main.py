"""All commands: ``allheads --help``."""

from __future__ import annotations

from typing import Annotated

import typer

import allheads as ah
from allheads.cli.attributing import attribute
from allheads.cli.completing import answer_shells, completion
from allheads.cli.console import GroupHelp, explained
from allheads.cli.conversion import convert
from allheads.cli.costing import cost
from allheads.cli.exploring import explore
from allheads.cli.exporting import export
from allheads.cli.graphing import graph
from allheads.cli.mcp_command import mcp
from allheads.cli.sweep_command import sweep
from allheads.cli.tables import frontier
from allheads_labs.commands.coverage import coverage
from allheads_labs.commands.faithfulness import faithfulness
from allheads_labs.commands.group import lab
from allheads_labs.commands.theorems import theorems

answer_shells()
# Plain help: rich's takes a second to import.
app = typer.Typer(
    add_completion=False,
    add_help_option=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"allheads {ah.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    asked: GroupHelp = False,
) -> None:
    """Turn a pretrained transformer into its attention-only twin.

    Arguments are what is read: a text, a prompt, files. The model is --model everywhere, smollm2-135m unless said.
    """


for command in (
    *(convert, explore, attribute, graph, sweep, mcp, theorems, cost, frontier, coverage, faithfulness),
    completion,
):
    app.command()(explained()(command))
app.add_typer(export, name="export")
app.add_typer(lab, name="lab")
