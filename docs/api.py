"""Write docs/api.md, all public names on one page, from their docstrings: python docs/api.py."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import allheads as ah

NAMESPACES = ("weights", "corpus", "gates", "pure", "plots")


def page() -> str:
    """The whole page, as Markdown."""
    parts = ["# All public names", "", "`import allheads as ah`; `help(ah.attribute)` says more of each.", ""]
    parts += _section("ah", ah, [name for name in ah.__all__ if name not in NAMESPACES])
    for name in NAMESPACES:
        namespace = getattr(ah, name)
        parts += ["", f"## ah.{name}", "", _first_line(namespace), ""]
        parts += _section(f"ah.{name}", namespace, namespace.__all__)
    return "\n".join(parts) + "\n"


def _section(prefix: str, owner: Any, names: list[str]) -> list[str]:
    lines = []
    for name in names:
        value = getattr(owner, name)
        lines.append(f"- **`{prefix}.{name}{_signature(value)}`** {_first_line(value)}")
        if inspect.isclass(value):
            lines += [f"  - `.{method}` {_first_line(member)}" for method, member in _members(value)]
    return lines


def _members(value: type) -> list[tuple[str, Any]]:
    """Public methods and properties that the class itself defines."""
    own = [(name, member) for name, member in vars(value).items() if not name.startswith("_")]
    return [(name, member) for name, member in own if callable(getattr(value, name)) or isinstance(member, property)]


def _signature(value: Any) -> str:
    if not inspect.isfunction(value):
        return ""
    names = [parameter.name for parameter in inspect.signature(value).parameters.values()]
    return f"({', '.join(names)})"


def _first_line(value: Any) -> str:
    text = inspect.getdoc(value) or ""
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
