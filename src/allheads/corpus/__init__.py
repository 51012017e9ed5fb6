"""What heads and neurons do over many texts: means, scores on repeated tokens, and sweeps over a corpus.

>>> import allheads as ah
>>> ah.corpus.head_scores(twin).top("induction")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.corpus.averages import Means as Means
    from allheads.corpus.averages import means as means
    from allheads.corpus.scores import HeadScores as HeadScores
    from allheads.corpus.scores import head_scores as head_scores
    from allheads.corpus.sweep_result import Sweep as Sweep
    from allheads.corpus.sweeping import sweep as sweep
    from allheads.corpus.texts import TextFiles as TextFiles
    from allheads.corpus.texts import opening as opening
    from allheads.corpus.texts import windows as windows

_HOME = {
    "HeadScores": "scores",
    "Means": "averages",
    "Sweep": "sweep_result",
    "TextFiles": "texts",
    "head_scores": "scores",
    "means": "averages",
    "opening": "texts",
    "sweep": "sweeping",
    "windows": "texts",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
