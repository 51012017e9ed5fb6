"""Attention patterns, packed one by one as they come, with the names along their sides."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.plots.packing import pack
from allheads.twin.labels import Label

#: Most tokens of a drawn pattern, and bytes of a page; a row of a long pattern needs about 30.
LONGEST, LARGEST, ROW = 4096, 100e6, 30
#: A row's sum may be this far from 1: patterns in bfloat16 are.
_ROUNDING = 0.01


@dataclass
class Patterns:
    """Packed patterns, the names along their sides, and what has to be said of them.

    ``names`` are lists by what they belong to: ``tokens``, ``decoder``, and others by how many they are. ``heads`` are
    plain values for JSON, one for each head, whose rows and columns number these lists. ``error`` is the largest
    difference between a weight and what is shown of it; ``deviation`` the largest difference of a row of ``worst``
    from one of probabilities.
    """

    names: dict[str, list[str]]
    heads: list[dict[str, Any]] = field(default_factory=list)
    error: float = 0.0
    deviation: float = 0.0
    worst: str = ""

    def add(self, label: Label, pattern: Float[Tensor, "row column"], rows: str, columns: str) -> None:
        """Pack one pattern. Raises `AllHeadsError` where it is not finite, or not as long as its names."""
        sums = pattern.sum(-1)
        if not sums.isfinite().all():
            raise AllHeadsError("finite weights", f"NaN or infinity in {label}", "Run ah.verify on the twin.")
        row, column = (self._number(name, n, label) for name, n in zip((rows, columns), pattern.shape, strict=True))
        deviation = max(float((sums - 1).abs().max()), -float(pattern.min()))
        if deviation > max(self.deviation, _ROUNDING):
            self.deviation, self.worst = deviation, str(label)
        weights, error = pack(pattern)
        self.error = max(self.error, error)
        head = {"label": str(label), "stem": label.stem, "kind": label.kind}
        self.heads.append(head | {"rows": row, "columns": column, "weights": weights})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        error = math.ceil(1e6 * self.error) / 1e6
        return {"names": list(self.names.values()), "heads": self.heads, "error": error}

    def _number(self, name: str, length: int, label: Label) -> int:
        """The number of the list of names along a side; a new list where nobody named that side."""
        if name not in self.names:
            name = f"{name} {length}"
            slots = ["self", *(f"bias {slot}" for slot in range(1, length))]
            self.names.setdefault(name, slots if name.startswith("slots") else [str(i) for i in range(length)])
        count = len(self.names[name])
        if count != length:
            raise AllHeadsError(f"{length} {name}, as {label} has", f"{count}", "Name each row and column once.")
        return list(self.names).index(name)


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
