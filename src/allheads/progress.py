"""Long work says how far it is: on a terminal or in a notebook, after three seconds, and it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

#: Seconds after which a bar shows that there is work.
PATIENCE = 3.0


def bar(
    what: str, items: Iterable[Any] | None = None, *, total: int | None = None, initial: int = 0, hidden: bool = False
) -> tqdm:
    """A bar over items, or one to be moved by hand up to ``total``; silent where nobody looks.

    >>> list(bar("Counting", range(3)))
    [0, 1, 2]
    """
    # None: shown on a terminal only.
    disable = True if hidden else None
    return tqdm(items, desc=what, total=total, initial=initial, delay=PATIENCE, disable=disable, leave=False)
