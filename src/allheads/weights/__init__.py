"""A twin read by its weights only: circuits through the embeddings, and composition over every pair.

>>> import allheads as ah
>>> print(ah.weights.circuit(twin, "L3.N812"))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.weights.circuits import circuit as circuit
    from allheads.weights.compositions import Composition as Composition
    from allheads.weights.compositions import composition as composition
    from allheads.weights.head import HeadCircuit as HeadCircuit
    from allheads.weights.neuron import NeuronCircuit as NeuronCircuit

_HOME = {
    "HeadCircuit": "head",
    "NeuronCircuit": "neuron",
    "Composition": "compositions",
    "circuit": "circuits",
    "composition": "compositions",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
