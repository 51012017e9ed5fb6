"""``allheads completion``: the script with which a shell completes commands, options, models and rules."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from typer.completion import completion_init, get_completion_script

from allheads.errors import AllHeadsError

SHELLS = ("bash", "zsh", "fish", "powershell")
#: In which the shell asks for completions.
_VARIABLE = "_ALLHEADS_COMPLETE"


# typer's own --install-completion would cost every --help a quarter of a second.
def completion(shell: Annotated[str, typer.Argument(help=f"{', '.join(SHELLS)}.")]) -> None:
    """Print the script that completes commands, options, models and rules: eval "$(allheads completion bash)"."""
    if shell not in SHELLS:
        raise AllHeadsError(f"a shell out of {', '.join(SHELLS)}", repr(shell), "Name yours.")
    typer.echo(get_completion_script(prog_name="allheads", complete_var=_VARIABLE, shell=shell))


def answer_shells() -> None:
    """Let typer know how each shell asks, where one does."""
    if _VARIABLE in os.environ:
        completion_init()
