"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Iterable[str]], right: Collection[str] = ()) -> str:
    """A table of cells that are text already; columns named in ``right`` are aligned there.

    >>> print(markdown(["layer", "error"], [["0", "1e-7"]], right=["error"]))
    | layer | error |
    | --- | ---: |
    | 0 | 1e-7 |
    """
    rule = ["---:" if name in right else "---" for name in header]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))
