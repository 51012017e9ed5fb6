"""What is measured of a learner: recall by load and distance, gradients at the distant input, and its twin."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from allheads_labs.kit.twins import side_by_side
from allheads_labs.recurrence.learners import Learner
from allheads_labs.recurrence.task import VALUES, recall

#: Test sequences of a cell, in portions that fit into memory; their seed, which no training has.
SEQUENCES, PORTION, SEED = 256, 64, 10**6
#: (length, loads, distances). The first is as long as training goes, the others are longer than any sequence seen.
GRID = (
    (256, (4, 8, 16, 32, 64), (8, 64, 256)),
    (512, (4, 64), (512,)),
    (1024, (4, 64), (1024,)),
)
#: Where gradients are taken, with a light load.
GRADIENT_LOAD, GRADIENT_LENGTH, GRADIENT_DISTANCES = 4, 512, (8, 64, 256, 512)


def recalled(
    learner: Learner, pairs: int, length: int, distances: tuple[int, ...], count: int = SEQUENCES
) -> list[float]:
    """The share of right answers at each distance."""
    draw, right = torch.Generator().manual_seed(SEED), torch.zeros(len(distances))
    with torch.no_grad():
        for _ in range(max(1, count // PORTION)):
            batch = recall(draw, (PORTION, length), pairs, distances=distances)
            right += (learner(batch.tokens, len(distances)).argmax(-1) == batch.answers).float().mean(0)
    return (right / max(1, count // PORTION)).tolist()


def cell(pairs: int, length: int, distance: int) -> str:
    """The name of an accuracy among results.

    >>> cell(4, 256, 8)
    '4 pairs, length 256, distance 8'
    """
    return f"{pairs} pairs, length {length}, distance {distance}"


def accuracies(
    learner: Learner, grid: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = GRID
) -> dict[str, float]:
    """Every cell of a grid."""
    return {
        cell(pairs, length, distance): share
        for length, loads, distances in grid
        for pairs in loads
        for distance, share in zip(distances, recalled(learner, pairs, length, distances), strict=True)
    }


def gradients(learner: Learner, count: int = 4) -> dict[str, float]:
    r"""The size of :math:`\partial \log p(\text{right value}) / \partial x_{T - D}`, by distance D.

    The norm over the embedding of the pair that is asked for, as a geometric mean over sequences; in float64, where
    nothing underflows. Keys are strings, for JSON.
    """
    precise = copy.deepcopy(learner).double()
    sizes = {}
    for distance in GRADIENT_DISTANCES:
        draw = torch.Generator().manual_seed(SEED)
        batch = recall(draw, (count, GRADIENT_LENGTH), GRADIENT_LOAD, distances=[distance])
        embedded = precise.embed(batch.tokens).detach().requires_grad_()
        chosen = precise.read(embedded).log_softmax(-1).gather(-1, batch.answers[..., None])
        (gradient,) = torch.autograd.grad(chosen.sum(), embedded)
        norms = gradient[:, GRADIENT_LENGTH - distance].norm(dim=-1).clamp_min(1e-300)
        sizes[str(distance)] = math.exp(float(norms.log().mean()))
    return sizes


def compared(learner: Learner) -> dict[str, Any]:
    """Accuracies of the transformer and of its twin on the same sequences, largest differences, and patterns.

    Uses the learner up: its network is wrapped.
    """
    batch = recall(torch.Generator().manual_seed(SEED + 1), (32, 256), 64, distances=[256])
    both = side_by_side(learner.bridge(), batch.tokens)

    def accuracy(logits: Tensor) -> float:
        return float((logits[:, :VALUES].argmax(-1) == batch.answers[:, 0]).double().mean())

    return {
        **both.compared("accuracy", accuracy),
        "logit_gap": float((both.twin - both.source)[:, :VALUES].abs().max()),
        # The pair asked for is the first token: what the query gives it, by layer and head.
        "looks": both.patterns[:, :, :, -1, 0].mean(1).tolist(),
    }
