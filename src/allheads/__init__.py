"""allheads: a pretrained transformer as its attention-only twin.

>>> import allheads as ah
>>> source = ah.load("smollm2-135m")
>>> twin = ah.convert(source)
>>> ah.verify(source, twin, "The quick brown fox jumps over the lazy dog.").passed
True

Names are imported when they are first used: importing the package is cheap and has no side effects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads import corpus as corpus
    from allheads import formats as formats
    from allheads import gates as gates
    from allheads import plots as plots
    from allheads import pure as pure
    from allheads import weights as weights
    from allheads.attribution.attribute import attribute as attribute
    from allheads.attribution.attribute_pattern import attribute_pattern as attribute_pattern
    from allheads.attribution.freezing import frozen as frozen
    from allheads.attribution.graph import graph as graph
    from allheads.attribution.interventions import ablate as ablate
    from allheads.attribution.interventions import patch as patch
    from allheads.attribution.interventions import pin as pin
    from allheads.attribution.rules import RULES as RULES
    from allheads.attribution.rules import Rule as Rule
    from allheads.attribution.similarity import similarity as similarity
    from allheads.errors import AllHeadsError as AllHeadsError
    from allheads.heads.bank import HeadBank as HeadBank
    from allheads.store.load import load as load
    from allheads.store.save import save as save
    from allheads.twin.convert import convert as convert
    from allheads.twin.cost import cost as cost
    from allheads.twin.labels import Label as Label
    from allheads.twin.twin import TwinBridge as TwinBridge
    from allheads.verification.verify import verify as verify

__version__ = "0.2.0"

_HOME = {
    # The life of a twin.
    "load": "store.load",
    "convert": "twin.convert",
    "verify": "verification.verify",
    "save": "store.save",
    "cost": "twin.cost",
    # Looking at it on a prompt.
    "attribute": "attribution.attribute",
    "attribute_pattern": "attribution.attribute_pattern",
    "graph": "attribution.graph",
    "similarity": "attribution.similarity",
    "frozen": "attribution.freezing",
    "ablate": "attribution.interventions",
    "patch": "attribution.interventions",
    "pin": "attribution.interventions",
    # What is passed around.
    "TwinBridge": "twin.twin",
    "HeadBank": "heads.bank",
    "Rule": "attribution.rules",
    "RULES": "attribution.rules",
    "Label": "twin.labels",
    "AllHeadsError": "errors",
    # Namespaces.
    "weights": "",
    "corpus": "",
    "formats": "",
    "gates": "",
    "pure": "",
    "plots": "",
}

__all__ = list(_HOME)

__getattr__ = importer(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
