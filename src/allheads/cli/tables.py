"""``allheads frontier``: heads and bias tokens against certified error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from allheads.cli.console import AsJson
from allheads.cli.documents import put, show
from allheads.disk import checked_path, write_whole


def frontier(
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this document.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the figure here, as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """The frontier of every activation, plain and gated, from the committed fits (`make fits` computes them anew)."""
    from allheads.gates.fitting.frontier import TABLES
    from allheads.gates.table import fits, to_json

    if write is not None:
        put(write, {f"frontier:{name}": table() for name, table in TABLES.items()})
    if figure is not None:
        from allheads.plots.frontier_figures import frontier_svg

        write_whole(checked_path(figure), frontier_svg())
    if as_json:
        typer.echo(json.dumps([to_json(fit) for fit in fits()]))
    elif write is None and figure is None:
        show({name: table() for name, table in TABLES.items()})
