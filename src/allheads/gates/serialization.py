"""Gate sums as JSON and back, to the last bit: in the table of fits and in stored twins."""

from __future__ import annotations

import math
from typing import Any

from allheads.errors import AllHeadsError
from allheads.gates.activations import ACTIVATIONS, Activation, activation_named
from allheads.gates.gates import Gate, GateSum

#: What JSON can hold of a float: itself, as Python prints doubles exactly, or the name of an infinity.
Number = float | str


def to_json(gates: GateSum) -> dict[str, Any]:
    """A gate sum as JSON holds it.

    Raises `AllHeadsError` for an activation that is neither in `ACTIVATIONS` nor one of those with factors.

    >>> from allheads.gates.approximation import approximate
    >>> to_json(approximate("silu"))["heads"]
    [{'alpha': 1.0, 'delta': 0.0, 'offsets': [0.0], 'slopes': [1.0]}]
    """
    name, factors = named(gates.activation)
    return {
        "activation": name,
        "factors": [[number(inner), number(outer)] for inner, outer in factors],
        "gated": gates.gated,
        "domain": number(gates.domain),
        "max_error": number(gates.max_error),
        "heads": [
            {
                "alpha": number(alpha),
                "delta": number(delta),
                "offsets": [number(offset) for offset in gate.offsets],
                "slopes": [number(slope) for slope in gate.slopes],
            }
            for gate, alpha, delta in zip(gates.gates, gates.alpha, gates.delta, strict=True)
        ],
    }


def from_json(row: dict[str, Any]) -> GateSum:
    """The gate sum of `to_json`.

    Raises `AllHeadsError` for an unknown activation or for something else than gates.

    >>> from allheads.gates.approximation import approximate
    >>> gates = approximate("gelu", gated=True).stretched(0.3, 2.0)
    >>> from_json(to_json(gates)) == gates
    True
    """
    try:
        activation = activation_named(row["activation"])
        for inner, outer in row["factors"]:
            activation = activation.stretched(float(inner), float(outer))
        heads = row["heads"]
        gates = GateSum(
            activation=activation,
            gated=bool(row["gated"]),
            gates=tuple(Gate(_numbers(head["offsets"]), _numbers(head["slopes"])) for head in heads),
            alpha=_numbers(head["alpha"] for head in heads),
            delta=_numbers(head["delta"] for head in heads),
            max_error=float(row["max_error"]),
            domain=float(row["domain"]),
        )
    except (KeyError, TypeError, ValueError) as cause:
        if isinstance(cause, AllHeadsError):
            raise
        raise _refused(f"{type(cause).__name__}: {cause}") from cause
    if not gates.gates or any(len(gate.offsets) != len(gate.slopes) for gate in gates.gates):
        raise _refused("heads without one slope for every offset")
    return gates


def named(activation: Activation) -> tuple[str, list[tuple[float, float]]]:
    """The name of an activation in the registry, and factors to stretch it by, one pair after the other.

    Raises `AllHeadsError` where there is none.

    >>> named(ACTIVATIONS["silu"].stretched(2.0, 3.0))
    ('silu', [(2.0, 3.0)])
    """
    if ACTIVATIONS.get(activation.name) is activation:
        return activation.name, []
    if activation.base is None:
        raise AllHeadsError(
            f"gates for an activation out of {', '.join(ACTIVATIONS)}, with factors or without",
            f"{activation.name!r}",
            "Only what can be named can be saved: convert with gates for one of these.",
        )
    name, factors = named(activation.base[0])
    return name, [*factors, activation.base[1:]]


def number(x: float) -> Number:
    """A float for JSON, which knows no infinities.

    >>> number(0.1), number(math.inf)
    (0.1, 'inf')
    """
    return float(x) if math.isfinite(x) else repr(float(x))


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


def _refused(what: str) -> AllHeadsError:
    return AllHeadsError("gates as ah.save writes them", what, "Save the twin again.")
