"""Self-attention against recurrence: ``allheads lab recurrence``.

Units: every learner in every setting of the sweep (recall, gradients, and the transformer's twin), and what a training
step costs. The transformer has one setting; recurrent nets have a sweep over steps and rates, always with more steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allheads_labs.kit.fitting import Recipe
from allheads_labs.kit.lab import Lab, Unit
from allheads_labs.recurrence import costs
from allheads_labs.recurrence.learners import KINDS, Learner
from allheads_labs.recurrence.measures import GRID, accuracies, compared, gradients
from allheads_labs.recurrence.report import claims, tables
from allheads_labs.recurrence.training import train

#: (kind, steps, learning rate, seeds of five, seconds). Time forces fewer seeds where only the sweep needs them.
FULL = (
    ("transformer", 300, 3e-3, 5, 18.0),
    ("lstm", 1000, 1e-2, 3, 20.0),
    ("lstm", 2500, 1e-2, 5, 50.0),
    ("lstm", 2500, 3e-3, 3, 50.0),
    ("lstm", 5000, 1e-2, 2, 95.0),
    ("gru", 1000, 5e-3, 3, 36.0),
    ("gru", 4000, 5e-3, 5, 110.0),
    ("gru", 2500, 2e-3, 2, 80.0),
)
#: Enough to see the direction, not the numbers.
QUICK = (("transformer", 100, 3e-3, 1, 5.0), ("lstm", 500, 1e-2, 1, 6.0), ("gru", 300, 5e-3, 1, 6.0))
QUICK_GRID = ((64, (4, 16, 64), (8, 64)), (256, (4, 64), (256,)))
QUICK_LENGTHS = (64, 256)


def units(quick: bool, seeds: int) -> list[Unit]:
    """All of one seed before the next; fewer seeds where the sweep says so, in proportion."""
    made = []
    for seed in range(seeds):
        for kind, steps, rate, share, seconds in QUICK if quick else FULL:
            if quick or seed < -(-share * seeds // 5):
                setting = {"kind": kind, "steps": steps, "rate": rate, "quick": quick}
                made.append(Unit(setting, seed, seconds))
        for kind in KINDS:
            lengths = QUICK_LENGTHS if quick else costs.LENGTHS
            made.append(Unit({"cost of": kind, "lengths": list(lengths)}, seed, 1.0 if quick else 4.0, alone=True))
    return made


def run(unit: Unit) -> dict[str, Any]:
    """Train and measure one learner, or measure what its steps cost."""
    setting: Mapping[str, Any] = unit.setting
    if "cost of" in setting:
        return {"seconds": {str(length): costs.seconds(setting["cost of"], length) for length in setting["lengths"]}}
    learner, seconds = train(setting["kind"], Recipe(setting["steps"], setting["rate"]), unit.seed)
    findings: dict[str, Any] = {
        "size": learner.size(),
        "training_seconds": seconds,
        "accuracies": accuracies(learner, QUICK_GRID if setting["quick"] else GRID),
        "gradients": {"start": gradients(Learner(setting["kind"], unit.seed)), "end": gradients(learner)},
    }
    if setting["kind"] == "transformer":
        findings["twin"] = compared(learner)
    return findings


LAB = Lab("recurrence", 1, units, run, tables, claims)
