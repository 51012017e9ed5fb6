"""All commands: ``allheads --help``."""

from __future__ import annotations

import typer

from allheads.cli.attributing import attribute
from allheads.cli.console import explained
from allheads.cli.conversion import convert
from allheads.cli.costing import cost
from allheads.cli.exploring import explore
from allheads.cli.sweep_command import sweep
from allheads.cli.tables import frontier
from allheads_labs.commands.coverage import coverage
from allheads_labs.commands.faithfulness import faithfulness
from allheads_labs.commands.group import lab
from allheads_labs.commands.theorems import theorems

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Turn a pretrained transformer into its attention-only twin."""


for command in (convert, explore, attribute, sweep, theorems, cost, frontier, coverage, faithfulness):
    app.command()(explained()(command))
app.add_typer(lab, name="lab")
