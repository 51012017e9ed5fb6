"""The attention-only twin of a trained transformer: does it recall the same, and look the same way?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from allheads_labs.kit.twins import side_by_side
from allheads_labs.recurrence.learners import Learner
from allheads_labs.recurrence.task import VALUES, recall

SEQUENCES, PAIRS, LENGTH, SEED = 32, 64, 256, 10**6 + 1


def compared(learner: Learner) -> dict[str, Any]:
    """Accuracies of the transformer and of its twin on the same sequences, largest differences, and patterns.

    Uses the learner up: its network is wrapped.
    """
    batch = recall(torch.Generator().manual_seed(SEED), (SEQUENCES, LENGTH), PAIRS, distances=[LENGTH])
    both = side_by_side(learner.bridge(), batch.tokens)

    def accuracy(logits: Tensor) -> float:
        return float((logits[:, :VALUES].argmax(-1) == batch.answers[:, 0]).double().mean())

    return {
        **both.compared("accuracy", accuracy),
        "logit_gap": float((both.twin - both.source)[:, :VALUES].abs().max()),
        # The pair asked for is the first token: what the query gives it, by layer and head.
        "looks": both.patterns[:, :, :, -1, 0].mean(1).tolist(),
    }
