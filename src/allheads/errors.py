"""The one error that users of the package meet."""

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
