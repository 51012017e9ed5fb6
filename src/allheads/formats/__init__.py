"""What is known of heads and neurons, as files of other tools.

>>> import allheads as ah
>>> found = ah.graph(twin, "Mary and John", " Mary", budget=5)
>>> ah.formats.write_graph(found, "graphs", "mary").name
'mary.json'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.formats.graphs import write_graph as write_graph
    from allheads.formats.saelens import read_autoencoder as read_autoencoder

_HOME = {
    "read_autoencoder": "saelens",
    "write_graph": "graphs",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
