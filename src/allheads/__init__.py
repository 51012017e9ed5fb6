"""allheads: a pretrained transformer as its attention-only twin.

>>> import allheads as ah
>>> source = ah.load("smollm2-135m")  # doctest: +SKIP
>>> twin = ah.convert(source)  # doctest: +SKIP
>>> print(ah.verify(source, twin, "The quick brown fox jumps over the lazy dog."))  # doctest: +SKIP

Names are imported when they are first used: importing the package is cheap and has no side effects.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allheads import physics as physics
    from allheads import plots as plots
    from allheads import pure as pure
    from allheads.banks.bank import HeadBank as HeadBank
    from allheads.circuits.attribution import Attribution as Attribution
    from allheads.circuits.attribution_graph import AttributionGraph as AttributionGraph
    from allheads.circuits.averages import Means as Means
    from allheads.circuits.averages import means as means
    from allheads.circuits.backward import attribute as attribute
    from allheads.circuits.confirmation import Confirmation as Confirmation
    from allheads.circuits.confirmation import confirm as confirm
    from allheads.circuits.graph import graph as graph
    from allheads.circuits.holding import frozen as frozen
    from allheads.circuits.interventions import ablate as ablate
    from allheads.circuits.interventions import patch as patch
    from allheads.circuits.interventions import pin as pin
    from allheads.circuits.patterns import PatternAttribution as PatternAttribution
    from allheads.circuits.patterns import attribute_pattern as attribute_pattern
    from allheads.circuits.rules import RULES as RULES
    from allheads.circuits.rules import Rule as Rule
    from allheads.errors import AllHeadsError as AllHeadsError
    from allheads.finding.corpus import TextFiles as TextFiles
    from allheads.finding.result import Sweep as Sweep
    from allheads.finding.scores import HeadScores as HeadScores
    from allheads.finding.scores import head_scores as head_scores
    from allheads.finding.sweep import sweep as sweep
    from allheads.models.bridge import TwinBridge as TwinBridge
    from allheads.proof.report import Report as Report
    from allheads.proof.report import Thresholds as Thresholds
    from allheads.proof.verify import verify as verify
    from allheads.store.load import load as load
    from allheads.store.save import save as save
    from allheads.theory.approximate import approximate as approximate
    from allheads.theory.gates import Gate as Gate
    from allheads.theory.gates import GateSum as GateSum
    from allheads.twin.convert import convert as convert
    from allheads.twin.cost import Cost as Cost
    from allheads.twin.cost import cost as cost
    from allheads.twin.heads import Head as Head
    from allheads.twin.heads import head as head
    from allheads.twin.heads import heads as heads
    from allheads.twin.labels import Label as Label
    from allheads.weights.circuit import Circuit as Circuit
    from allheads.weights.circuit import circuit as circuit
    from allheads.weights.composition import Composition as Composition
    from allheads.weights.composition import composition as composition

__version__ = "0.1.0"

_HOME = {
    "RULES": "circuits.rules",
    "AllHeadsError": "errors",
    "Attribution": "circuits.attribution",
    "AttributionGraph": "circuits.attribution_graph",
    "Confirmation": "circuits.confirmation",
    "Circuit": "weights.circuit",
    "Composition": "weights.composition",
    "Cost": "twin.cost",
    "Gate": "theory.gates",
    "GateSum": "theory.gates",
    "Head": "twin.heads",
    "HeadBank": "banks.bank",
    "HeadScores": "finding.scores",
    "Label": "twin.labels",
    "Means": "circuits.averages",
    "PatternAttribution": "circuits.patterns",
    "Report": "proof.report",
    "Rule": "circuits.rules",
    "Sweep": "finding.result",
    "TextFiles": "finding.corpus",
    "Thresholds": "proof.report",
    "TwinBridge": "models.bridge",
    "ablate": "circuits.interventions",
    "approximate": "theory.approximate",
    "attribute": "circuits.backward",
    "attribute_pattern": "circuits.patterns",
    "confirm": "circuits.confirmation",
    "circuit": "weights.circuit",
    "composition": "weights.composition",
    "convert": "twin.convert",
    "cost": "twin.cost",
    "frozen": "circuits.holding",
    "graph": "circuits.graph",
    "head": "twin.heads",
    "head_scores": "finding.scores",
    "heads": "twin.heads",
    "load": "store.load",
    "means": "circuits.averages",
    "patch": "circuits.interventions",
    "pin": "circuits.interventions",
    "save": "store.save",
    "sweep": "finding.sweep",
    "verify": "proof.verify",
}

_ROOMS = ("physics", "plots", "pure")

__all__ = [*_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"allheads.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'allheads' has no attribute {name!r}")
    value = getattr(import_module(f"allheads.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
