"""Training on recall: a curriculum by competence, then everything mixed; the same for all learners.

Loads and lengths grow when the learner is right often enough, or when it is high time. Recurrent nets bind
keys to values late and on short sequences first: without this they are starved, and look worse than they are.
"""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from allheads import AllHeadsError
from allheads_labs.kit.fitting import Recipe, fit
from allheads_labs.recurrence.learners import Kind, Learner
from allheads_labs.recurrence.task import RecallBatch, recall

#: (pairs, length), and how often the last one has to be right before the next one comes.
STAGES = ((2, 2), (4, 4), (4, 8), (8, 8), (8, 32))
COMPETENT = 0.85
#: When everything is mixed at the latest, as a share of the steps.
MIXED = 0.7
#: After the stages loads and lengths are drawn apart from each other.
LOADS, LENGTHS = (2, 4, 4, 8, 16, 32, 64), (8, 8, 16, 16, 32, 32, 64, 64, 64, 128, 256)
#: Tokens of a step unless fewer than ``ROWS`` sequences would fit; queries of a sequence.
TOKENS, ROWS, QUERIES = 1024, 8, 16


class Curriculum:
    """What the next step is about."""

    def __init__(self, steps: int, seed: int) -> None:
        self.steps, self.stage, self.right = steps, 0, 0.0
        self._choose, self._draw = random.Random(seed), torch.Generator().manual_seed(seed)

    def batch(self, step: int) -> RecallBatch:
        """Half of the steps are of the last stage, the others of those before."""
        if step >= MIXED * self.steps:
            self.stage = len(STAGES)
        last = self.stage
        if last == len(STAGES):
            pairs, length = self._choose.choice(LOADS), self._choose.choice(LENGTHS)
            length = max(pairs, length)
        else:
            self._at = last if self._choose.random() < 0.5 else self._choose.randrange(last + 1)
            pairs, length = STAGES[self._at]
        queries = min(pairs, QUERIES)
        shape = max(ROWS, TOKENS // (length + queries)), length
        return recall(self._draw, shape, pairs, queries=queries)

    def record(self, right: float) -> None:
        """The share of right answers in the step that is made."""
        if self.stage < len(STAGES) and self._at == self.stage:
            self.right = 0.9 * self.right + 0.1 * right
            if self.right > COMPETENT:
                self.stage, self.right = self.stage + 1, 0.0


def train(kind: Kind, recipe: Recipe, seed: int) -> tuple[Learner, float]:
    """A trained learner in evaluation mode, and the seconds it took.

    Raises `AllHeadsError` for no steps.
    """
    if recipe.steps < 1:
        raise AllHeadsError("at least one step", str(recipe.steps), "Recipes have hundreds.")
    learner, course = Learner(kind, seed), Curriculum(recipe.steps, seed)
    started = time.perf_counter()

    def loss(step: int) -> Tensor:
        batch = course.batch(step)
        logits = learner(batch.tokens, batch.answers.shape[1])
        course.record(float((logits.argmax(-1) == batch.answers).float().mean()))
        return F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())

    fit(learner.trained_parameters(), loss, recipe)
    return learner.eval(), time.perf_counter() - started
