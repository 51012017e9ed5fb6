"""Markdown tables: in documents, between markers that commands replace, ``<!-- name -->``, and on a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from allheads.cli.console import results
from allheads.disk import write_whole
from allheads.errors import AllHeadsError, printable


def put(path: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between the markers of every table that the document has markers for.

    Raises `AllHeadsError` if it cannot be read, or has markers for none.
    """
    text = document(path)
    wanted = [name for name in tables if f"<!-- {name} -->" in text] or list(tables)
    for name in wanted:
        text = between(text, name, tables[name], str(path))
    write_whole(path, text)


def show(tables: Mapping[str, str]) -> None:
    """Tables under their names, drawn as such on standard output."""
    from rich.markdown import Markdown

    console = results()
    for name, table in tables.items():
        console.print(name)
        console.print(Markdown(printable(table)))


def document(path: Path) -> str:
    """Its text. Long work asks for it before it begins, so that a wrong path is known then."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AllHeadsError("a document with markers for tables", f"{path} ({error})", "Check the path.") from error


def between(text: str, name: str, table: str, where: str = "the document") -> str:
    r"""The text with a fresh table between its markers.

    >>> between("<!-- a -->old<!-- /a -->", "a", "new")
    '<!-- a -->\nnew\n<!-- /a -->'
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise AllHeadsError(f"the markers {start} and {end}", f"{where} without them", "Put them where the table goes.")
    return pattern.sub(lambda _: f"{start}\n{table.strip()}\n{end}", text)
