"""What heads and neurons do over many texts: means, scores on repeated tokens, and sweeps over a corpus.

>>> import allheads as ah
>>> len(ah.corpus.head_scores(twin, length=16).top("induction", 3))
3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.corpus.averages import Means as Means
    from allheads.corpus.averages import means as means
    from allheads.corpus.repeated_token_scores import HeadScores as HeadScores
    from allheads.corpus.repeated_token_scores import head_scores as head_scores
    from allheads.corpus.run_sweep import SweepSettings as SweepSettings
    from allheads.corpus.run_sweep import sweep as sweep
    from allheads.corpus.sweep_result import Sweep as Sweep
    from allheads.corpus.token_windows import TextFiles as TextFiles
    from allheads.corpus.token_windows import opening as opening
    from allheads.corpus.token_windows import windows as windows

_HOME = {
    "HeadScores": "repeated_token_scores",
    "Means": "averages",
    "Sweep": "sweep_result",
    "SweepSettings": "run_sweep",
    "TextFiles": "token_windows",
    "head_scores": "repeated_token_scores",
    "means": "averages",
    "opening": "token_windows",
    "sweep": "run_sweep",
    "windows": "token_windows",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
