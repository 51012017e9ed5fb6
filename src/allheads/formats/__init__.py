"""What is known of heads and neurons, as files that other tools read.

>>> import allheads as ah
>>> sweep = ah.corpus.sweep(twin, ["Mary and John went to the store."])
>>> folder = ah.formats.write_features(twin, sweep, "features", labels=["L3.N812"])
>>> [path.name for path in folder.iterdir()]
['333332.json']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.formats.features import write_features as write_features
    from allheads.formats.headvis import write_headvis as write_headvis

_HOME = {
    "write_features": "features",
    "write_headvis": "headvis",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
