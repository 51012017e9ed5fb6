"""Examples in docstrings become blocks of code: outside of a section of their own, griffe takes them for prose."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?: *(?:>>>|\.\.\.).*| *\S.*))*", re.MULTILINE)


def fenced(text: str) -> str:
    """A docstring whose examples stand between fences, without the options of doctest.

    >>> print(fenced("Sums.\\n\\n>>> 1 + 1  # doctest: +SKIP"))
    Sums.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    ```
    """

    def fence(found: re.Match[str]) -> str:
        indent = found[1]
        return f"{indent}```pycon\n{re.sub('  # doctest: .*', '', found[0])}\n{indent}```"

    return _EXAMPLE.sub(fence, text)


class Doctests(Extension):
    """Fences the examples of every object that has a docstring."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring and ">>>" in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
