"""Gates: what one attention head makes of a number, and sums of them that equal or approximate an activation.

>>> import allheads as ah
>>> ah.gates.approximate("gelu", tolerance=1e-3).heads
2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.gates.activations import Activation as Activation
    from allheads.gates.activations import activation_named as activation_named
    from allheads.gates.activations import generalised_silu as generalised_silu
    from allheads.gates.approximation import approximate as approximate
    from allheads.gates.gates import Gate as Gate
    from allheads.gates.gates import GateSum as GateSum

_HOME = {
    "Activation": "activations",
    "Gate": "gates",
    "GateSum": "gates",
    "activation_named": "activations",
    "approximate": "approximation",
    "generalised_silu": "activations",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
