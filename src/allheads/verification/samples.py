"""Four paragraphs to verify on when the user brings no text."""

from __future__ import annotations

from importlib.resources import files


def sample_texts() -> list[str]:
    """English prose, each paragraph more than 128 tokens long for the usual tokenizers.

    >>> len(sample_texts())
    4
    """
    return files("allheads.verification").joinpath("samples.txt").read_text(encoding="utf-8").strip().split("\n\n")
