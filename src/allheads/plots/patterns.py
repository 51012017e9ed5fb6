"""Attention patterns, packed one by one as they come, with the names along their sides."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.plots.packing import Block, pack
from allheads.twin.labels import Label

#: Most tokens of a drawn pattern, and bytes of a page; a row of a long pattern needs about 30.
LONGEST, LARGEST, ROW = 4096, 100e6, 30
#: A row's sum may be this far from 1: patterns in bfloat16 are.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Pattern:
    """One head's pattern; ``rows`` and ``columns`` number the lists of names that it belongs to."""

    label: Label
    rows: int
    columns: int
    block: Block

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        label, block = self.label, self.block
        named = {"label": str(label), "stem": label.stem, "kind": label.kind}
        return named | {"rows": self.rows, "columns": self.columns, "weights": block.text}


@dataclass
class Patterns:
    """Patterns as they come in, and the worst row that is not one of probabilities.

    ``lists`` are names by what they belong to: ``tokens``, ``decoder``, and others by how many they are.
    """

    lists: dict[str, list[str]]
    found: list[Pattern] = field(default_factory=list)
    deviation: float = 0.0
    where: str = ""

    def add(self, label: Label, pattern: Float[Tensor, "row column"], rows: str, columns: str) -> None:
        """Pack one pattern. Raises `AllHeadsError` where it is not finite, or not as long as its names."""
        sums, least = pattern.sum(-1), float(pattern.min())
        if not sums.isfinite().all():
            raise AllHeadsError("finite weights", f"NaN or infinity in {label}", "Run ah.verify on the twin.")
        row, column = (self._list(name, n, label) for name, n in zip((rows, columns), pattern.shape, strict=True))
        off = max(float((sums - 1).abs().max()), -least)
        if off > max(self.deviation, _ROUNDING):
            self.deviation, self.where = off, str(label)
        self.found.append(Pattern(label, row, column, pack(pattern)))

    def warn(self) -> None:
        """Say if any row was not one of probabilities."""
        if self.deviation:
            warnings.warn(
                f"{self.where} has rows that are not probabilities, off by up to {self.deviation:.3g}: "
                "weights are drawn as 0 below 0, and as 1 above 1.",
                stacklevel=4,
            )

    @property
    def error(self) -> float:
        """The largest difference between a weight and what is shown of it."""
        return max(each.block.error for each in self.found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "names": list(self.lists.values()),
            "heads": [each.to_dict() for each in self.found],
            "error": math.ceil(1e6 * self.error) / 1e6,
        }

    def _list(self, name: str, length: int, label: Label) -> int:
        if name not in self.lists:
            name = f"{name} {length}"
            slots = ["self", *(f"bias {slot}" for slot in range(1, length))]
            self.lists.setdefault(name, slots if name.startswith("slots") else [str(i) for i in range(length)])
        given = len(self.lists[name])
        if given != length:
            raise AllHeadsError(f"{length} {name}, as {label} has", f"{given}", "Name each row and column once.")
        return list(self.lists).index(name)


def check_size(heads: int, rows: int, columns: int) -> None:
    """Raises `AllHeadsError` for more than can be drawn, with the size that it would have."""
    page = heads * rows * min(columns, ROW)
    if max(rows, columns) > LONGEST or page > LARGEST:
        raise AllHeadsError(
            f"at most {LONGEST:,} tokens and a page of {LARGEST / 1e6:.0f} MB",
            f"{heads} patterns of {rows:,} x {columns:,}, {4e-9 * heads * rows * columns:,.1f} GB of weights and "
            f"a page of about {page / 1e6:,.1f} MB",
            "Draw a shorter text, or fewer heads.",
        )
