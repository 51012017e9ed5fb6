"""Do roles come before, with or after ability? ``allheads lab roles``.

A ladder of transformers, each with one thing changed: width, heads, layers, or how many different sequences there are
to learn from. Accuracy and roles are measured at steps a factor of 1.41 apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from allheads_labs.kit.fitting import Recipe, fit
from allheads_labs.kit.lab import Lab, Unit
from allheads_labs.kit.twins import side_by_side
from allheads_labs.roles.measures import breaks, clarity, summary
from allheads_labs.roles.model import Reader
from allheads_labs.roles.report import claims, tables
from allheads_labs.roles.task import AttributeBatch, sequences

#: The step of the ladder that all others differ from in one thing; ``data`` 0 is new sequences at every step.
BASE = {"width": 32, "heads": 4, "layers": 1, "data": 0}
LADDER = {"width": (8, 16, 64), "heads": (1, 2, 8), "layers": (2, 3), "data": (512, 2048, 8192)}
ROWS, RATE, STEPS, QUICK_STEPS = 64, 3e-3, 1200, 500
#: Sequences that everything is measured on, and their seed, which no training has.
TEST, SEED = 1024, 10**6
POINTS = tuple(round(8 * 2 ** (at / 2)) for at in range(20))


def units(quick: bool, seeds: int) -> list[Unit]:
    """The base first, then the ladder, one seed after the other. A quick run has the base and a single head."""
    settings = [BASE] + [BASE | {what: value} for what, values in LADDER.items() for value in values]
    if quick:
        settings = [BASE, BASE | {"heads": 1}]
    steps = QUICK_STEPS if quick else STEPS
    made = [(setting | {"steps": steps}, _cost(setting, steps)) for setting in settings]
    return [Unit(setting, seed, cost) for seed in range(seeds) for setting, cost in made]


def _cost(setting: dict[str, int], steps: int) -> float:
    return steps / 1000 * (5 + 5 * setting["layers"]) * (1.4 if setting["width"] > 32 else 1.0)


def run(unit: Unit) -> dict[str, Any]:
    """Train, look at the heads on the way, break them at the end, and compare with the twin."""
    setting = unit.setting
    reader = Reader(setting["width"], setting["heads"], setting["layers"], unit.seed)
    test = sequences(torch.Generator().manual_seed(SEED), TEST)
    course = train(reader, setting["steps"], setting["data"], unit.seed, test)
    lost = breaks(reader, test)
    return {
        "course": course,
        "breaks": lost.tolist(),
        "clarity of breaks": clarity("breaks", lost),
        "size": sum(p.numel() for p in reader.body.transformer.h.parameters()),
        "twin": compared(reader, test.chosen(torch.arange(TEST // 4))),
    }


def train(reader: Reader, steps: int, data: int, seed: int, test: AttributeBatch) -> list[dict[str, Any]]:
    """What was seen at the points and at the end, each with its ``step``; ``reader`` is trained in place."""
    draw, course = torch.Generator().manual_seed(seed), []
    known = sequences(draw, data) if data else None

    def look(step: int) -> None:
        course.append({"step": step, **summary(reader.activations(test.tokens), test)})

    def loss(step: int) -> Tensor:
        if step in POINTS:
            look(step)
        batch = sequences(draw, ROWS) if known is None else known.chosen(torch.randint(data, (ROWS,), generator=draw))
        return F.cross_entropy(reader(batch.tokens).flatten(0, 1), batch.answers.flatten())

    fit(reader.trained_parameters(), loss, Recipe(steps, RATE))
    reader.eval()
    look(steps)
    return course


def compared(reader: Reader, batch: AttributeBatch) -> dict[str, float]:
    """Accuracies of the reader and of its twin on the same sequences, and the largest difference of a pattern.

    Uses the reader up: its network is wrapped.
    """
    both = side_by_side(reader.bridge(), batch.tokens)
    size, values = batch.answers.shape[1], reader.embed.values.shape[0]

    def right(logits: Tensor) -> float:
        best = logits[:, :values].unflatten(-1, (size, -1)).argmax(-1)
        return float((best == batch.answers).double().mean())

    return both.compared("accuracy", right)


LAB = Lab("roles", 1, units, run, tables, claims)
