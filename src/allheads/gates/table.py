"""The committed table of fits, ``fits.json``: reading and writing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from allheads.gates import serialization
from allheads.gates.gates import GateSum

TABLE = "fits.json"


@dataclass(frozen=True)
class Fit:
    """One row of the table: the fitted gate sum, the family it came from, and how much it amplifies rounding.

    ``amplification`` is the largest ``sum_h |alpha_h t + delta_h| P_h(t)`` in units of ``1 + |f|`` for plain and
    ``0.3 + |f|`` for gated fits: the error of the sum when every pattern is off by a relative epsilon.
    """

    family: str
    gate_sum: GateSum
    amplification: float

    @property
    def slots(self) -> int:
        """Keys that one neuron's heads attend to: heads plus bias tokens."""
        return self.gate_sum.heads + sum(self.gate_sum.bias_tokens)


def to_json(fit: Fit) -> dict[str, Any]:
    """A row of the table as it is written: the gate sum's, with family and amplification."""
    return {"family": fit.family, "amplification": fit.amplification, **serialization.to_json(fit.gate_sum)}


def from_json(row: dict[str, Any]) -> Fit:
    """A row of the table as it was written."""
    return Fit(row["family"], serialization.from_json(row), row["amplification"])


@cache
def fits() -> tuple[Fit, ...]:
    """Every fit of the table that comes with the package.

    >>> all(fit.gate_sum.max_error > 0 for fit in fits())
    True
    """
    text = (resources.files("allheads.gates") / TABLE).read_text(encoding="utf-8")
    return tuple(from_json(row) for row in json.loads(text))


def write_fits(path: Path, rows: Iterable[Fit]) -> None:
    """Write fits, one a line, ordered by activation, kind, domain and cost."""
    ordered = sorted(
        rows,
        key=lambda fit: (
            fit.gate_sum.activation.name,
            fit.gate_sum.gated,
            fit.gate_sum.domain,
            fit.family,
            fit.slots,
            fit.gate_sum.max_error,
        ),
    )
    lines = ",\n".join(json.dumps(to_json(fit), allow_nan=False) for fit in ordered)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
