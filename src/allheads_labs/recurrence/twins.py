"""The attention-only twin of a trained transformer: does it recall the same, and look the same way?"""

from __future__ import annotations

from typing import Any

import torch

from allheads_labs.recurrence.learners import Learner
from allheads_labs.recurrence.task import VALUES, recall
from allheads_labs.twins import side_by_side

SEQUENCES, PAIRS, LENGTH, SEED = 32, 64, 256, 10**6 + 1


def compared(learner: Learner) -> dict[str, Any]:
    """Accuracies of the transformer and of its twin on the same sequences, largest differences, and patterns.

    Uses the learner up: its network is wrapped.
    """
    batch = recall(torch.Generator().manual_seed(SEED), SEQUENCES, PAIRS, LENGTH, distances=[LENGTH])
    both = side_by_side(learner.bridge(), batch.tokens)
    theirs, ours = both.source[:, :VALUES], both.twin[:, :VALUES]
    answers = batch.answers[:, 0]
    return {
        "accuracy": float((theirs.argmax(-1) == answers).double().mean()),
        "twin_accuracy": float((ours.argmax(-1) == answers).double().mean()),
        "pattern_gap": both.pattern_gap,
        "logit_gap": float((ours - theirs).abs().max()),
        # The pair asked for is the first token: what the query gives it, by layer and head.
        "looks": both.patterns[:, :, :, -1, 0].mean(1).tolist(),
    }
