"""Which attribution finds the parts that do the task? ``allheads faithfulness``. A unit is one task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from allheads import TwinBridge
from allheads_labs.faithfulness.bench import outcomes
from allheads_labs.kit.lab import Lab, Result, Unit
from allheads_labs.kit.statistics import bootstrap
from allheads_labs.kit.table import Statistic, table, where
from allheads_labs.kit.twins import twin_digest


def lab(twin: TwinBridge, task: str, prompts: int, seed: int) -> Lab:
    """The lab on one task and so many prompts, which the seed draws."""
    unit = Unit({"twin": twin_digest(twin), "task": task, "prompts": prompts}, seed, 1.0, alone=True)
    return Lab("faithfulness", 1, partial(units, unit), partial(run, twin), tables, threads=None)


def units(unit: Unit, quick: bool, seeds: int) -> list[Unit]:
    """The one."""
    return [unit]


def run(twin: TwinBridge, unit: Unit) -> dict[str, Any]:
    """Every method and order on the task."""
    found = outcomes(twin, unit.setting["task"], unit.setting["prompts"], unit.seed)
    return {"outcomes": [outcome.to_dict() for outcome in found]}


def tables(results: Sequence[Result]) -> dict[str, str]:
    """A table for each task, by the name of its marker."""
    return {
        f"faithfulness:{result.setting['task']}": table(areas(result.found["outcomes"]), ["method"], _COLUMNS)
        for result in results
    }


def areas(outcomes: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each method, order and prompt; ``more`` is how much larger the area is than the gradient's, by sign."""
    rows = pd.DataFrame(outcomes).explode(["areas", "strict"]).astype({"areas": float, "strict": float})
    rows["prompt"] = rows.groupby(["method", "order"]).cumcount()
    gradient = rows[(rows["method"] == "gradient") & (rows["order"] == "sign")].set_index("prompt")["areas"]
    return rows.assign(more=rows["areas"] - rows["prompt"].map(gradient))


def _resampled(column: str) -> Statistic:
    def shown(group: pd.DataFrame) -> str:
        mean, low, high = bootstrap(group[column])
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"

    return shown


def _more_than_gradient(group: pd.DataFrame) -> str:
    return "" if group["method"].iloc[0] == "gradient" else where(_resampled("more"), order="sign")(group)


_COLUMNS: dict[str, Statistic] = {
    "method": lambda group: f"`{group['method'].iloc[0]}`",
    "by size": where(_resampled("areas"), order="size"),
    "by sign": where(_resampled("areas"), order="sign"),
    "by sign, overshoot penalised": where(_resampled("strict"), order="sign"),
    "by sign, more than gradient": _more_than_gradient,
}
