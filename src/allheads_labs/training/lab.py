"""Training and regularisation: does it matter that a neuron is a head? ``allheads lab training``.

The paper leaves open how attention-only transformers train. Here a small transformer learns the next character of
Python's documentation, with its hidden layers in the forms of `allheads_labs.training.hidden_layers`, always from the
same start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd

from allheads_labs.kit.lab import Lab, Result, Unit
from allheads_labs.kit.table import Statistic, average, first, frame, table
from allheads_labs.kit.text import documentation, texts_digest
from allheads_labs.training.training import Setting, train

SETTINGS = (
    Setting("mlp"),
    Setting("tied"),
    Setting("untied"),
    Setting("mlp", weight_decay=0.3),
    Setting("untied", weight_decay=0.3),
    Setting("mlp", "hidden"),
    Setting("tied", "pattern"),
    Setting("tied", "key"),
    Setting("untied", "pattern"),
    Setting("untied", "key"),
)


def lab(steps: int) -> Lab:
    """The lab with so many steps of every run. Steps are timed, so that no two runs are at work at once."""
    return Lab("training", 2, partial(units, steps), run, tables, seeds=3, threads=None)


def units(steps: int, quick: bool, seeds: int) -> list[Unit]:
    """All settings, or the first three if quick, one seed after the other."""
    text = texts_digest(documentation())
    return [
        Unit({**asdict(setting), "steps": steps, "text": text}, seed, steps / 30, alone=True)
        for seed in range(seeds)
        for setting in (SETTINGS[:3] if quick else SETTINGS)
    ]


def run(unit: Unit) -> dict[str, Any]:
    """Train one model."""
    form, dropout, weight_decay = (unit.setting[name] for name in ("form", "dropout", "weight_decay"))
    return train(Setting(form, dropout, weight_decay), unit.seed, unit.setting["steps"])


def tables(results: Sequence[Result]) -> dict[str, str]:
    """Losses at the end, held-out ones with half their range over seeds, and how open the gates are."""
    rows = frame(results)
    rows = rows.assign(last=rows["train"].str[-1], held_out_last=rows["held_out"].str[-1])
    return {"training": table(rows, ["setting"], _COLUMNS)}


def _with_range(group: pd.DataFrame) -> str:
    values = group["held_out_last"]
    return f"{values.mean():.4f} ± {(values.max() - values.min()) / 2:.4f}"


_COLUMNS: dict[str, Statistic] = {
    "setting": first("setting"),
    "training loss": average("last", ".4f"),
    "held-out loss": _with_range,
    "ms/step": lambda group: f"{1e3 * group['seconds_per_step'].median():.1f}",
    "mean gate": average("gates_mean", ".3f"),
    "shut": average("gates_shut", ".3f"),
    "open": average("gates_open", ".3f"),
    "parted": average("parted", ".3f"),
}
