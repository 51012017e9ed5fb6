"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from allheads_labs.kit.lab import Claim, Result
from allheads_labs.kit.statistics import interval, rank_correlation
from allheads_labs.kit.table import Statistic, average, claims_table, first, frame, largest, mean, table
from allheads_labs.roles.measures import halfway

#: Series over training whose middles are compared with that of accuracy.
SERIES = {
    "found": "weight on the right entity",
    "carried": "bits that the best head carries",
    "looks": "roles: where heads look",
    "carries": "roles: what heads carry",
}
#: Below this a series is too small, at its end, to have a middle.
_RISEN = {"looks": 0.02, "carries": 0.1}


def named(setting: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """What a setting changes.

    >>> base = {"width": 32, "heads": 4, "layers": 1, "data": 0}
    >>> named(base | {"heads": 8}, base), named(base | {"data": 512}, base), named(base, base)
    ('8 heads', '512 sequences', 'base')
    """
    texts = {
        "width": f"d_model {setting['width']}",
        "heads": f"{setting['heads']} head{'s' if setting['heads'] > 1 else ''}",
        "layers": f"{setting['layers']} layers",
        "data": f"{setting['data']} sequences",
    }
    return ", ".join(text for name, text in texts.items() if setting[name] != base[name]) or "base"


def steps(result: Result) -> list[int]:
    """The points of training."""
    return [point["step"] for point in result.found["course"]]


def series(result: Result) -> dict[str, list[float]]:
    """Over the points of training: accuracy, and each of `SERIES`; a clarity that is too little to say counts as 0."""
    course = result.found["course"]
    return {
        "accuracy": [sum(point["accuracy"]) / len(point["accuracy"]) for point in course],
        "found": [point["found"] for point in course],
        "carried": [_mean_of_best(point["carries"]) for point in course],
        "looks": [point["clarity"]["looks"] or 0.0 for point in course],
        "carries": [point["clarity"]["carries"] or 0.0 for point in course],
    }


def _mean_of_best(carries: Sequence[Sequence[float]]) -> float:
    """For each attribute the head that carries most of it, then the mean."""
    best = [max(heads) for heads in zip(*carries, strict=True)]
    return sum(best) / len(best)


def lag(result: Result, name: str) -> float | None:
    """How many doublings of steps later a series is halfway than accuracy is; None if one of them does not rise."""
    values = series(result)
    if values[name][-1] < _RISEN.get(name, 0.0):
        return None
    ours, ability = halfway(steps(result), values[name]), halfway(steps(result), values["accuracy"])
    return None if ours is None or ability is None else math.log2(ours / ability)


def summary(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each result: the end and the start of every series, and how much later than accuracy it rises."""
    rows = frame(results).drop(columns="course")
    rows["name"] = [named(result.setting, results[0].setting) for result in results]
    rows["halfway"] = [halfway(steps(result), series(result)["accuracy"]) for result in results]
    for name in ("accuracy", *SERIES):
        rows[name], rows[f"{name} at first"] = ([series(result)[name][at] for result in results] for at in (-1, 0))
        rows[f"lag of {name}"] = [lag(result, name) for result in results]
    for name in ("looks", "carries"):
        rows[f"clarity/{name}"] = [result.found["course"][-1]["clarity"][name] for result in results]
    return rows.astype({column: float for column in rows if column.startswith(("clarity", "lag", "halfway"))})


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    rows = summary(results)
    order = {f"{text}, later by": _mean_and_count(f"lag of {name}") for name, text in SERIES.items()}
    return {
        "roles:claims": claims_table(claims(results)),
        "roles:ladder": table(rows, ["name"], _LADDER),
        "roles:order": table(
            rows, ["name"], {"setting": first("name"), "accuracy halfway at step": mean("halfway", ".0f"), **order}
        ),
        "roles:twin": table(rows, ["name"], _TWIN),
    }


def _mean_and_count(column: str) -> Statistic:
    """The mean, and of how many seeds it is unless it is of all."""

    def shown(group: pd.DataFrame) -> str:
        known = group[column].count()
        counted = "" if known in (0, len(group)) else f" ({known} of {len(group)} seeds)"
        return mean(column, "+.2f")(group) + counted

    return shown


_LADDER: dict[str, Statistic] = {
    "setting": first("name"),
    "parameters of blocks": first("size", ","),
    "accuracy": mean("accuracy"),
    "weight on the right entity": mean("found", ".2f"),
    "roles, bits: where heads look": mean("clarity/looks", ".2f"),
    "what they carry": mean("clarity/carries", ".2f"),
    "what breaks without them": mean("clarity of breaks", ".2f"),
}
_TWIN: dict[str, Statistic] = {
    "setting": first("name"),
    "accuracy": average("twin/accuracy", ".4f"),
    "accuracy, twin": average("twin/twin_accuracy", ".4f"),
    "largest difference of a pattern": largest("twin/pattern_gap"),
}


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out."""
    rows = summary(results)
    base = rows[rows["name"] == "base"]
    start, end = interval(base["looks at first"]), interval(base["looks"])
    gap, same = rows["twin/pattern_gap"].max(), (rows["twin/accuracy"] == rows["twin/twin_accuracy"]).all()
    return [
        Claim(
            "heads take roles: training makes clearer who looks where (bits of 2)",
            f"{start.shown('.2f')} to {end.shown('.2f')}",
            end.low > start.mean,
        ),
        _order_claim(base["lag of found"], "heads find the right entity before they can say what it is like"),
        _order_claim(base["lag of looks"], "roles come before ability, by where heads look"),
        _order_claim(base["lag of carries"], "and by what they carry"),
        *_ladder_claims(rows, base),
        Claim("twins are as accurate, patterns within 1e-4", f"{gap:.1e}", same and gap <= 1e-4),
    ]


def _order_claim(lags: pd.Series, text: str) -> Claim:
    if not lags.count():
        return Claim(text, "it does not rise", False)
    later = interval(lags.dropna())
    return Claim(text, f"{later.shown('+.2f')} doublings of steps after it", later.high < 0)


def _ladder_claims(rows: pd.DataFrame, base: pd.DataFrame) -> Iterator[Claim]:
    """Of a single head, and of all settings with several."""
    single = rows[rows["name"] == "1 head"]
    if len(single):
        alone, many = interval(single["accuracy"]), interval(base["accuracy"])
        text = "ability needs roles: a single head, which can have none, is less accurate"
        yield Claim(text, f"{alone.shown()} and {many.shown()}", alone.high < many.mean)
    if rows["name"].nunique() > 3:
        several = rows[rows["heads"] > 1].pivot(index="seed", columns="name", values=["looks", "accuracy"]).dropna()
        readings = (torch.tensor(several[name].to_numpy()) for name in ("looks", "accuracy"))
        along = interval(rank_correlation(*readings).tolist())
        text = "over the ladder clearer roles go with more accuracy (rank correlation)"
        yield Claim(text, along.shown(".2f"), along.low > 0.0)
