"""Tables in documents, between markers that commands replace: ``<!-- name -->`` and ``<!-- /name -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from allheads.errors import AllHeadsError


def put(path: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between the markers of every table.

    Raises `AllHeadsError` if the document cannot be read, or has no such markers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AllHeadsError("a document with markers for tables", f"{path} ({error})", "Check the path.") from error
    for name, table in tables.items():
        text = between(text, name, table, str(path))
    path.write_text(text, encoding="utf-8")


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
