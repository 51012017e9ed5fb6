"""Every method on a task: areas under the ladder by prompt, and intervals by resampling prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from allheads import AllHeadsError, TwinBridge
from allheads.corpus import means
from allheads.progress import bar
from allheads_labs.faithfulness.ladder import area, recovered, rungs
from allheads_labs.faithfulness.methods import METHODS, Case
from allheads_labs.faithfulness.tasks import right_ones
from allheads_labs.kit.statistics import bootstrap

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
