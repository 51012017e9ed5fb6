"""The committed table of fits, ``fits.json``: reading, writing, and turning entries into gate sums."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from allheads.gates.activations import activation_named
from allheads.gates.gates import Gate, GateSum

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


def to_json(fit: Fit) -> dict[str, object]:
    """A row of the table as it is written."""
    s = fit.gate_sum
    return {
        "activation": s.activation.name,
        "gated": s.gated,
        "domain": s.domain if math.isfinite(s.domain) else None,
        "family": fit.family,
        "max_error": s.max_error,
        "amplification": fit.amplification,
        "heads": [
            {"alpha": a, "delta": d, "offsets": list(gate.offsets), "slopes": list(gate.slopes)}
            for gate, a, d in zip(s.gates, s.alpha, s.delta, strict=True)
        ],
    }


def from_json(row: dict) -> Fit:
    """A row of the table as it was written."""
    heads = row["heads"]
    gate_sum = GateSum(
        activation=activation_named(row["activation"]),
        gated=row["gated"],
        gates=tuple(Gate(tuple(head["offsets"]), tuple(head["slopes"])) for head in heads),
        alpha=tuple(head["alpha"] for head in heads),
        delta=tuple(head["delta"] for head in heads),
        max_error=row["max_error"],
        domain=math.inf if row["domain"] is None else row["domain"],
    )
    return Fit(row["family"], gate_sum, row["amplification"])


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
