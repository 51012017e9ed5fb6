"""One grammar for all commands; help and refusals come before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import allheads as ah
from allheads.cli.before_loading import check_targets
from allheads.cli.main import app
from allheads_labs.commands.faithfulness import TASKS

#: What a command needs seconds for.
HEAVY = {"torch", "transformers", "transformer_lens", "pandas", "numpy", "plotly"}
LOADS = {"convert", "explore", "attribute", "graph", "sweep", "mcp", "export features", "export heads"}
LOADS |= {"faithfulness", "lab physics"}

_CODE = """
import json, sys
from allheads.cli.main import app
done = []
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments, prog_name="allheads")
    except SystemExit as stop:
        done.append(stop.code)
print(json.dumps([done, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]))
"""


def _without_help_from_others(commands, unwanted):
    """Exit codes of commands in one fresh interpreter, which of the unwanted modules it has then, and what was said."""
    command = [sys.executable, "-c", _CODE, json.dumps(commands), json.dumps(sorted(unwanted))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    return codes, modules, done


def _commands():
    """Every command and group by its words."""
    root = get_command(app)
    groups = {name: group.commands for name, group in root.commands.items() if hasattr(group, "commands")}
    return root.commands | {f"{name} {inner}": each for name, all_ in groups.items() for inner, each in all_.items()}


def test_every_help_is_shown_without_anything_heavy():
    names = [name.split() for name in _commands()]
    codes, modules, done = _without_help_from_others(
        [[*name, "--help"] for name in names], HEAVY | {"rich", "pydantic"}
    )
    assert set(codes) == {0}
    assert modules == []
    assert done.stdout.count("Usage: allheads") == len(names) >= 17
    assert "<bool>" not in done.stdout


WRONG = [
    (["attribute", "A text", "--target", " a", "--rule", "quarter"], "a rule out of"),
    (["attribute", "A text", "--target", "antidisestablish"], "one token"),
    (["attribute", "A text", "--target", ""], "a token"),
    (["attribute", "A text", "--target", " a", "--versus", " a"], "two different tokens"),
    (["attribute", "A text", "--target", " a", "--position", "9"], "a position from"),
    (["attribute", "A text", "--target", " a", "--report", "nowhere/page.html"], "a path in a folder that exists"),
    (["attribute", "gpt2", "--target", " a"], "text"),
    (["graph", "A text", "--target", " a", "-o", "x.json", "--format", "gexf"], "a format out of"),
    (["graph", "A text", "--target", " a", "-o", "x.csv"], "a file that ends in .json or .graphml"),
    (["graph", "A text", "--target", " a", "-o", "pyproject.toml", "--format", "neuronpedia"], "a folder"),
    (["explore", " "], "text"),
    (["explore", "A text", "--model", "another text"], "the name of a model"),
    (["convert", "A text", "--model", "smollm2-153m"], "a short model name"),
    (["convert", "A text", "--device", "gpu"], "a device"),
    (["convert", "A text", "--dtype", "int8"], "a dtype"),
    (["convert", "A text", "--tolerance", "-1"], "a positive tolerance"),
    (["sweep", "nowhere.txt", "--out", "sweep.safetensors"], "text files"),
    (["export", "features", "nowhere.safetensors", "--out", "new"], "a file that allheads sweep has written"),
    (["export", "features", __file__, "--out", "nowhere/new"], "a name in an existing folder"),
    (["export", "features", __file__, "--out", "."], "the name of a new folder"),
    (["export", "heads", "nowhere.txt", "--out", "new"], "text files"),
    (["export", "heads", __file__, "--out", "new", "--label", "3.5"], "a label such as"),
    (["faithfulness", "poetry"], "a task out of"),
    (["convert", "A text", "--model", "org/name"], "the model org/name in the Hugging Face cache"),
    (["cost", "gpt5"], "a known model"),
    (["completion", "cmd"], "a shell out of"),
    (["lab", "recurence"], "the name of a lab"),
]


def test_what_is_wrong_is_said_before_anything_heavy(smollm):
    """``smollm`` has been unpacked: its tokenizer is at hand."""
    codes, modules, done = _without_help_from_others([arguments for arguments, _ in WRONG], HEAVY - {"numpy"})
    assert codes == [2] * len(WRONG)
    assert modules == []
    said = done.stderr.splitlines()
    assert len(said) == len(WRONG)
    for line, (_, expected) in zip(said, WRONG, strict=True):
        assert line.startswith(f"allheads: Expected {expected}"), line


def test_the_model_and_what_it_runs_on_are_asked_for_in_one_way():
    for name, command in _commands().items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--model" in options) == ("--device" in options) == ("--dtype" in options) == (name in LOADS)
        assert "--json" in options or name in ("lab", "export", "completion", "mcp")
        assert "--text" not in options


def test_a_word_without_its_space_is_noticed(smollm, capsys):
    """Both are tokens of SmolLM2; the first goes on with a word."""
    check_targets("smollm2-135m", "Give it to", ["John"])
    assert "'John' goes on with the word before it" in capsys.readouterr().err
    check_targets("smollm2-135m", "Give it to", [" John"])
    check_targets("smollm2-135m", "Give it to ", ["John"])
    assert capsys.readouterr().err == ""
    with pytest.raises(ah.AllHeadsError, match="Did you mean ' kitten'"):
        check_targets("smollm2-135m", "Give it to the", ["kitten"])


def test_version_and_completion(monkeypatch):
    assert CliRunner().invoke(app, ["--version"]).stdout == f"allheads {ah.__version__}\n"
    assert "_ALLHEADS_COMPLETE" in CliRunner().invoke(app, ["completion", "bash"]).stdout


def test_tables_are_drawn():
    shown = CliRunner().invoke(app, ["frontier"]).stdout
    assert "| ---" not in shown
    assert "activation  heads  1 token" in shown


def test_names_of_tasks_are_those_of_the_tasks():
    from allheads_labs.faithfulness import tasks

    assert tuple(tasks.TASKS) == TASKS
