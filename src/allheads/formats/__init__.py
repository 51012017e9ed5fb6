"""Files of other tools, written and read, and twins on the Hugging Face Hub.

>>> import allheads as ah
>>> found = ah.attribute(twin, "Mary and John", " Mary")
>>> ah.formats.read_circuit(ah.formats.write_circuit(found, "circuit.json", keep=20)).facts()["parts"]
20
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.formats.circuit import Circuit as Circuit
    from allheads.formats.circuits import read_circuit as read_circuit
    from allheads.formats.circuits import write_circuit as write_circuit
    from allheads.formats.features import write_features as write_features
    from allheads.formats.graphs import write_graph as write_graph
    from allheads.formats.headvis import write_headvis as write_headvis
    from allheads.formats.saelens import read_autoencoder as read_autoencoder
    from allheads.store.hub import push_to_hub as push_to_hub

_HOME = {
    "Circuit": "circuit",
    "push_to_hub": "..store.hub",
    "read_autoencoder": "saelens",
    "read_circuit": "circuits",
    "write_circuit": "circuits",
    "write_features": "features",
    "write_graph": "graphs",
    "write_headvis": "headvis",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
