"""Which attribution finds the parts that do the task? ``allheads faithfulness``. A unit is one task.

Every method is put on the ladder, prompt by prompt; intervals come from resampling prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd

from allheads import AllHeadsError, TwinBridge
from allheads.corpus import means
from allheads.progress import bar
from allheads_labs.faithfulness.ladder import area, recovered, rungs
from allheads_labs.faithfulness.methods import METHODS, Case
from allheads_labs.faithfulness.tasks import right_ones
from allheads_labs.kit.lab import Lab, Result, Unit
from allheads_labs.kit.statistics import bootstrap
from allheads_labs.kit.table import Statistic, table, where
from allheads_labs.kit.twins import twin_digest

#: How parts are ranked.
ORDERS = ("size", "sign")


@dataclass(frozen=True)
class Outcome:
    """One method in one order on one task: areas by prompt, clipped and with overshoot penalised."""

    task: str
    method: str
    order: str
    areas: tuple[float, ...]
    strict: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the mean area and its interval."""
        mean, low, high = bootstrap(self.areas)
        return asdict(self) | {"mean": mean, "low": low, "high": high, "strict_mean": bootstrap(self.strict)[0]}


def outcomes(twin: TwinBridge, task: str, prompts: int, seed: int = 0) -> Iterator[Outcome]:
    """Every method and order on the prompts of a task that the model gets right.

    Raises `AllHeadsError` for an unknown task, fewer than two prompts, or too few that the model gets right.
    """
    if prompts < 2:
        raise AllHeadsError("at least two prompts", str(prompts), "Intervals need several; the default is 28.")
    chosen = right_ones(twin, task, prompts, seed)
    average = means(twin, [prompt.text for prompt in chosen], by_position=True)
    areas: dict[tuple[str, str], list[tuple[float, float]]] = {(name, by): [] for name in METHODS for by in ORDERS}
    for prompt in bar(task, chosen):
        ids, corrupt = (twin.to_tokens(text, truncate=False) for text in (prompt.text, prompt.corrupt))
        if ids.shape != corrupt.shape:
            raise AllHeadsError("prompts as long as what asks the opposite", prompt.text, "Use another model.")
        case = Case(ids, corrupt, prompt.target(twin), average)
        for name, score in METHODS.items():
            scores = score(twin, case)
            ks = rungs(scores.heads.numel() + scores.neurons.numel())
            for by in ORDERS:
                curve = recovered(twin, case, scores, by)
                areas[name, by].append((area(curve, ks), area(curve, ks, overshoot=True)))
    for (name, by), rows in areas.items():
        clipped, strict = zip(*rows, strict=True)
        yield Outcome(task, name, by, clipped, strict)


def lab(twin: TwinBridge, task: str, prompts: int, seed: int) -> Lab:
    """The lab on one task and so many prompts, which the seed draws."""
    unit = Unit({"twin": twin_digest(twin), "task": task, "prompts": prompts}, seed, 1.0, alone=True)
    return Lab("faithfulness", 1, partial(units, unit), partial(run, twin), tables, threads=None)


def units(unit: Unit, quick: bool, seeds: int) -> list[Unit]:
    """The one."""
    return [unit]


def run(twin: TwinBridge, unit: Unit) -> dict[str, Any]:
    """Every method and order on the task."""
    rows = outcomes(twin, unit.setting["task"], unit.setting["prompts"], unit.seed)
    return {"outcomes": [outcome.to_dict() for outcome in rows]}


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
