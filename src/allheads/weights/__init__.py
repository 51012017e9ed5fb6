"""A twin read by its weights only: circuits through the embeddings, and composition over every pair.

>>> import allheads as ah
>>> print(ah.weights.circuit(twin, "L3.N812", k=3))
L3.N812
     opens: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.heads.evaluate import slot_scores as slot_scores
    from allheads.heads.weights import HeadWeights as HeadWeights
    from allheads.models.attention import Attention as Attention
    from allheads.models.attention import read_attention as read_attention
    from allheads.models.attention import rotated as rotated
    from allheads.models.norms import Norm as Norm
    from allheads.twin.wiring import Wiring as Wiring
    from allheads.twin.wiring import read_wiring as read_wiring
    from allheads.weights.circuits import circuit as circuit
    from allheads.weights.compositions import Composition as Composition
    from allheads.weights.compositions import composition as composition
    from allheads.weights.factors import require_scores as require_scores
    from allheads.weights.factors import require_values as require_values
    from allheads.weights.head import HeadCircuit as HeadCircuit
    from allheads.weights.neuron import NeuronCircuit as NeuronCircuit

_HOME = {
    "HeadCircuit": "head",
    "NeuronCircuit": "neuron",
    # The weights themselves, for experiments of one's own.
    "Attention": "..models.attention",
    "read_attention": "..models.attention",
    "HeadWeights": "..heads.weights",
    "slot_scores": "..heads.evaluate",
    "Norm": "..models.norms",
    "Wiring": "..twin.wiring",
    "read_wiring": "..twin.wiring",
    "rotated": "..models.attention",
    "require_scores": "factors",
    "require_values": "factors",
    "Composition": "compositions",
    "circuit": "circuits",
    "composition": "compositions",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
