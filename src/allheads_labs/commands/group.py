"""``allheads lab``: experiments that anyone can rerun."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from allheads.cli.console import GroupHelp, explained
from allheads_labs.commands.lab import command
from allheads_labs.commands.physics import physics
from allheads_labs.commands.training import training
from allheads_labs.kit.registry import LABS, unknown


class Labs(TyperGroup):
    """Commands by the names of labs; an unknown name is one clear error."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names."""
        with explained():
            if args[0] not in self.commands:
                raise unknown(args[0], self.commands)
        return super().resolve_command(ctx, args)


lab = typer.Typer(cls=Labs, add_help_option=False, no_args_is_help=True, help="Experiments that anyone can rerun.")


@lab.callback()
def main(asked: GroupHelp = False) -> None:
    """Experiments that anyone can rerun."""


lab.command()(training)
lab.command()(physics)
for name, about in LABS.items():
    lab.command(name, help=about)(command(name))
