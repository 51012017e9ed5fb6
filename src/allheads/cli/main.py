"""All commands: ``allheads --help``."""

from __future__ import annotations

import typer

from allheads.cli.attribution import attribute
from allheads.cli.conversion import convert
from allheads.cli.counting import cost
from allheads.cli.coverage import coverage
from allheads.cli.experiments import lab
from allheads.cli.exploring import explore
from allheads.cli.faithfulness import faithfulness
from allheads.cli.gallery import theorems
from allheads.cli.sweeping import sweep
from allheads.cli.tables import frontier

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Turn a pretrained transformer into its attention-only twin."""


for command in (convert, explore, attribute, sweep, theorems, cost, frontier, coverage, faithfulness):
    app.command()(command)
app.add_typer(lab, name="lab")
