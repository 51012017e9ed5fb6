"""The command line's page: what every ``--help`` says."""

from __future__ import annotations

from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from allheads.cli.main import app


def page() -> str:
    """The page, as Markdown."""
    lines = [
        "# Command line",
        "",
        "One grammar: arguments are what is read (a text, a prompt, files), the model is `--model` everywhere, results "
        'are tables, or one JSON object with `--json`. `eval "$(allheads completion bash)"` completes commands, '
        "options, models and rules. Exit codes: 0, 1 where something is not the same or fails, 2 for bad input, 130 if "
        "interrupted.",
    ]
    root = get_command(app)
    groups = {name: command.commands for name, command in root.commands.items() if isinstance(command, TyperGroup)}
    alone = [[name] for name in root.commands if name not in groups]
    for name in (*alone, *([group, name] for group, commands in groups.items() for name in commands)):
        shown = CliRunner().invoke(app, [*name, "--help"], prog_name="allheads", terminal_width=90).output
        lines += ["", f"## allheads {' '.join(name)}", "", "```text", shown.strip(), "```"]
    return "\n".join(lines) + "\n"
