"""English with some code in it, which ships with Python: the topics of its documentation."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterable

from allheads.disk import digest


def documentation() -> list[str]:
    """Every topic; another version of Python has other ones."""
    return [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]


def texts_digest(texts: Iterable[str]) -> str:
    """Tells results on other texts."""
    return digest("\0".join(texts))
