"""Numbers by which other tools know neurons: layer and index in one."""

from __future__ import annotations

from collections.abc import Iterable

from allheads.errors import AllHeadsError
from allheads.twin.labels import Label


def cantor(layer: int, index: int) -> int:
    """Cantor's pairing: a number for every pair, and no number twice.

    >>> cantor(3, 812), cantor(812, 3)
    (333332, 332523)
    """
    return (layer + index) * (layer + index + 1) // 2 + index


def feature_ids(labels: Iterable[Label]) -> dict[int, Label]:
    """The labels by their numbers, in order.

    Raises `AllHeadsError` where two have the same: in different stacks, or experts of a layer.
    """
    found: dict[int, Label] = {}
    for label in labels:
        known = found.setdefault(cantor(label.layer, label.index), label)
        if known != label:
            raise same_number(known, label, str(cantor(label.layer, label.index)))
    return found


def same_number(first: Label, second: Label, number: str) -> AllHeadsError:
    """The error for two parts that a format cannot tell apart."""
    return AllHeadsError(
        "parts with numbers of their own", f"{first} and {second}, both {number}", "Name the labels of one stack."
    )
