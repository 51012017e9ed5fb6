"""Errors by symptom: every `AllHeadsError` that the code can raise, read from its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
#: What stands where a message has a value of the moment.
ANY = "…"
#: Rooms of the package, in the order in which a person meets them, and what they do.
ROOMS = {
    "models": "Loading and understanding a model",
    "twin": "Converting, prompts and labels",
    "heads": "Editing and evaluating heads",
    "verification": "Verifying",
    "attribution": "Attribution, graphs and interventions",
    "weights": "Circuits and composition",
    "corpus": "Means, scores and sweeps",
    "plots": "Pictures",
    "formats": "Files of other tools",
    "store": "Saved twins",
    "pure": "The pure form",
    "gates": "Gates",
    "cli": "The command line",
    "": "Files and everywhere else",
    "allheads_labs": "Experiments",
}


@dataclass(frozen=True, order=True)
class Refusal:
    """One place that refuses, in its three parts, and the module that does."""

    expected: str
    got: str
    remedy: str
    module: str


def refusals() -> list[Refusal]:
    """All of them, by what was expected."""
    found = {refusal for path in sorted(SOURCE.rglob("*.py")) for refusal in _in_file(path)}
    return sorted(found, key=lambda refusal: (refusal.expected.lower(), refusal))


def page() -> str:
    """The page, as Markdown: a table for each room."""
    lines = [
        "# Errors by symptom",
        "",
        "Bad input gets one error, `AllHeadsError`, in three parts: what was expected, what came, what to do. "
        f"These are all of them, read from the code; {ANY} stands for a value of the moment. "
        "Search for a few words of yours, as in `Expected one prompt`.",
    ]
    every = refusals()
    for room, title in ROOMS.items():
        rows = [refusal for refusal in every if _room(refusal.module) == room]
        lines += ["", f"## {title}", "", "| expected | got | what to do |", "| --- | --- | --- |"]
        lines += [f"| Expected {_cell(row.expected)} | {_cell(row.got)} | {_cell(row.remedy)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _room(module: str) -> str:
    first, *rest = module.split(".")
    if first != "allheads":
        return first
    return rest[0] if len(rest) > 1 else ""


def _cell(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[").split()) or ANY


def _in_file(path: Path) -> Iterator[Refusal]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for scope in scopes:
        names = _assigned(scope)
        for call in (node for node in ast.walk(scope) if isinstance(node, ast.Call)):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name == "AllHeadsError" and len(call.args) == 3:
                yield Refusal(*(_text(part, names) for part in call.args), module)
            elif name == "explained" and len(call.args) == 2:
                expected, remedy = (_text(part, names) for part in call.args)
                yield Refusal(expected, "what the library below says", remedy, module)


def _assigned(scope: ast.FunctionDef) -> dict[str, ast.expr]:
    """What local names stand for, where they are given one value."""
    given: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            given.setdefault(node.targets[0].id, []).append(node.value)
    return {name: values[0] for name, values in given.items() if len(values) == 1}


def _text(part: ast.expr, names: dict[str, ast.expr]) -> str:
    """What an argument says, as far as the code tells."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    if isinstance(part, ast.JoinedStr):
        return "".join(_text(value, names) for value in part.values)
    if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add):
        return _text(part.left, names) + _text(part.right, names)
    if isinstance(part, ast.IfExp):
        options = dict.fromkeys(_text(option, names) for option in (part.body, part.orelse))
        return " / ".join(option for option in options if option)
    if isinstance(part, ast.Name) and part.id in names:
        return _text(names[part.id], {name: value for name, value in names.items() if name != part.id})
    return ANY
