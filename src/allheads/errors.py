"""The one error that users of the package meet, and how text of others is shown to them."""

from __future__ import annotations


class AllHeadsError(ValueError):
    """Bad input, said in three parts: what was expected, what came, what to do.

    >>> raise AllHeadsError("a positive tolerance", "-1.0", "Leave it out for the default.")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected a positive tolerance, got -1.0. Leave it out for the default.
    """

    def __init__(self, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"Expected {expected}, got {got}. {remedy}")
        self.expected, self.got, self.remedy = expected, got, remedy


def printable(text: str) -> str:
    r"""Text in which whatever is no letter, sign or space is escaped: names and tokens may move cursors, or be halves.

    >>> print(printable("[bold] \x1b[2J \ud800"))
    [bold] \x1b[2J \ud800
    """
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )
