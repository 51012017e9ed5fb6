"""The bench: every method on every task, areas by prompt, and intervals by resampling prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from allheads.corpus.averages import means
from allheads.errors import AllHeadsError
from allheads.twin.twin import TwinBridge
from allheads_labs.faithfulness.ladder import area, recovered, rungs
from allheads_labs.faithfulness.methods import METHODS, Case
from allheads_labs.faithfulness.tasks import right_ones

#: How parts are ranked, and resamples of an interval.
ORDERS, _RESAMPLES = ("size", "sign"), 2000


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
        mean, low, high = interval(self.areas)
        return asdict(self) | {"mean": mean, "low": low, "high": high, "strict_mean": interval(self.strict)[0]}


def outcomes(
    twin: TwinBridge, task: str, prompts: int, seed: int = 0, advance: Callable[[], object] = lambda: None
) -> Iterator[Outcome]:
    """Every method and order on the prompts of a task that the model gets right; ``advance`` is called for each prompt.

    Raises `AllHeadsError` for an unknown task, fewer than two prompts, or too few that the model gets right.
    """
    if prompts < 2:
        raise AllHeadsError("at least two prompts", str(prompts), "Intervals need several; the default is 28.")
    chosen = right_ones(twin, task, prompts, seed)
    average = means(twin, [prompt.text for prompt in chosen], by_position=True)
    areas: dict[tuple[str, str], list[tuple[float, float]]] = {(name, by): [] for name in METHODS for by in ORDERS}
    for prompt in chosen:
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
        advance()
    for (name, by), rows in areas.items():
        clipped, strict = zip(*rows, strict=True)
        yield Outcome(task, name, by, clipped, strict)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean, and the middle 95 % of means of resampled values.

    >>> interval([0.5, 0.5, 0.5])
    (0.5, 0.5, 0.5)
    """
    data = torch.tensor(values, dtype=torch.float64)
    picks = torch.randint(len(data), (_RESAMPLES, len(data)), generator=torch.Generator().manual_seed(seed))
    low, high = data[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(data.mean()), low, high


def advantage(one: Outcome, other: Outcome) -> tuple[float, float, float]:
    """How much larger the area of one is, on the same prompts: `interval` of the differences."""
    return interval([a - b for a, b in zip(one.areas, other.areas, strict=True)])
