"""The attention-only twin of a trained transformer: does it recall the same, and look the same way?"""

from __future__ import annotations

from typing import Any

import torch

from allheads.labs.recurrence.learners import Learner
from allheads.labs.recurrence.task import VALUES, recall
from allheads.twin.convert import convert

SEQUENCES, PAIRS, LENGTH, SEED = 32, 64, 256, 10**6 + 1


def compared(learner: Learner) -> dict[str, Any]:
    """Accuracies of the transformer and of its twin on the same sequences, largest differences, and patterns.

    The twin is evaluated by slots, one softmax for each neuron, and not by the source's own formula. Uses the learner
    up: its network is wrapped.
    """
    source = learner.bridge()
    twin = convert(source)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(source.cfg.n_layers)]
    batch = recall(torch.Generator().manual_seed(SEED), SEQUENCES, PAIRS, LENGTH, distances=[LENGTH])
    with torch.no_grad(), twin.evaluated("slots"):
        (ours, seen), (theirs, known) = (
            model.run_with_cache(batch.tokens, names_filter=names, return_cache_object=False)
            for model in (twin, source)
        )
    answers = [logits[:, -1, :VALUES].argmax(-1) == batch.answers[:, 0] for logits in (theirs, ours)]
    found = torch.stack([known[name][:, :, -1, 0].mean(0) for name in names])
    return {
        "accuracy": float(answers[0].double().mean()),
        "twin_accuracy": float(answers[1].double().mean()),
        "pattern_gap": max(float((known[name] - seen[name]).abs().max()) for name in names),
        "logit_gap": float((ours - theirs)[:, -1, :VALUES].abs().max()),
        # The pair asked for is the first token: what the query gives it, by layer and head.
        "looks": found.tolist(),
    }
