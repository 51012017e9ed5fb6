"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from allheads_labs.intervals import Interval, interval
from allheads_labs.lab import Claim, Result, claims_table
from allheads_labs.ranks import rank_correlation
from allheads_labs.roles.measures import halfway

READINGS = {"looks": "where heads look", "carries": "what heads carry"}
#: Series over training whose middles are compared with that of accuracy.
SERIES = {
    "found": "weight on the right entity",
    "carried": "bits that the best head carries",
    "looks": "roles: where heads look",
    "carries": "roles: what heads carry",
}
#: Below this a series is too small, at its end, to have a middle.
_RISEN = {"looks": 0.02, "carries": 0.1}


def by_setting(results: Sequence[Result]) -> dict[tuple[int, int, int, int], list[Result]]:
    """Results by (width, heads, layers, data); the base comes first."""
    found: dict[tuple[int, int, int, int], list[Result]] = {}
    for each in results:
        width, heads, layers, data = (each.setting[what] for what in ("width", "heads", "layers", "data"))
        found.setdefault((width, heads, layers, data), []).append(each)
    return found


def named(setting: tuple[int, int, int, int], base: tuple[int, int, int, int]) -> str:
    """What a setting changes.

    >>> named((32, 8, 1, 0), (32, 4, 1, 0)), named((32, 4, 1, 512), (32, 4, 1, 0)), named((8,) * 4, (8,) * 4)
    ('8 heads', '512 sequences', 'base')
    """
    changed = [
        (f"d_model {setting[0]}", setting[0] != base[0]),
        (f"{setting[1]} head{'s' if setting[1] > 1 else ''}", setting[1] != base[1]),
        (f"{setting[2]} layers", setting[2] != base[2]),
        (f"{setting[3]} sequences", setting[3] != base[3]),
    ]
    return ", ".join(text for text, is_changed in changed if is_changed) or "base"


def series(result: Result) -> dict[str, list[float]]:
    """Over the points of training: accuracy, and each of `SERIES`; a clarity that is too little to say counts as 0."""
    course = result.found["course"]
    made = {
        "accuracy": [_mean(point["accuracy"]) for point in course],
        "found": [point["found"] for point in course],
        "carried": [_mean(map(max, zip(*point["carries"], strict=True))) for point in course],
    }
    for reading in READINGS:
        made[reading] = [point["clarity"][reading] or 0.0 for point in course]
    return made


def steps(result: Result) -> list[int]:
    """The points of training."""
    return [point["step"] for point in result.found["course"]]


def lag(result: Result, name: str) -> float | None:
    """How many doublings of steps later a series is halfway than accuracy is; None if one of them does not rise."""
    own = series(result)
    if own[name][-1] < _RISEN.get(name, 0.0):
        return None
    ours, ability = halfway(steps(result), own[name]), halfway(steps(result), own["accuracy"])
    return None if ours is None or ability is None else math.log2(ours / ability)


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    return {
        "roles:claims": claims_table(claims(results)),
        "roles:ladder": _ladder(results),
        "roles:order": _order(results),
        "roles:twin": _twin(results),
    }


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out."""
    grouped = by_setting(results)
    base, own = next(iter(grouped.items()))
    start, end = (interval([series(each)["looks"][at] for each in own]) for at in (0, -1))
    made = [
        Claim(
            "heads take roles: training makes clearer who looks where (bits of 2)",
            f"{start.shown('.2f')} to {end.shown('.2f')}",
            _above(end, start.mean),
        ),
        _order_claim(own, "found", "heads find the right entity before they can say what it is like"),
        _order_claim(own, "looks", "roles come before ability, by where heads look"),
        _order_claim(own, "carries", "and by what they carry"),
    ]
    single = grouped.get((base[0], 1, base[2], base[3]))
    if single:
        alone, many = _accuracy(single), _accuracy(own)
        text = "ability needs roles: a single head, which can have none, is less accurate"
        made.append(Claim(text, f"{alone.shown()} and {many.shown()}", alone.mean + (alone.half or 0) < many.mean))
    if len(grouped) > 3:
        along = interval(_along(grouped))
        text = "over the ladder clearer roles go with more accuracy (rank correlation)"
        made.append(Claim(text, along.shown(".2f"), _above(along, 0.0)))
    gap = max(each.found["twin"]["pattern_gap"] for each in results)
    same = all(each.found["twin"]["accuracy"] == each.found["twin"]["twin_accuracy"] for each in results)
    return [*made, Claim("twins are as accurate, patterns within 1e-4", f"{gap:.1e}", same and gap <= 1e-4)]


def _order_claim(own: Sequence[Result], name: str, text: str) -> Claim:
    found = _lags(own, name)
    if found is None:
        return Claim(text, "it does not rise", False)
    return Claim(text, f"{found.shown('+.2f')} doublings of steps after it", found.mean + (found.half or 0) < 0)


def _along(grouped: dict[tuple[int, int, int, int], list[Result]]) -> list[float]:
    """For each seed, the rank correlation of clarity and accuracy over the settings with several heads."""
    several = [own for (_, heads, _, _), own in grouped.items() if heads > 1]
    pairs = [[(series(each)["looks"][-1], series(each)["accuracy"][-1]) for each in own] for own in several]
    seeds = min(map(len, pairs))
    return [float(rank_correlation(*torch.tensor([own[seed] for own in pairs]).mT.unbind())) for seed in range(seeds)]


def _ladder(results: Sequence[Result]) -> str:
    grouped = by_setting(results)
    base = next(iter(grouped))
    lines = [
        "| setting | parameters of blocks | accuracy | weight on the right entity | roles, bits: where heads look | "
        "what they carry | what breaks without them |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, own in grouped.items():
        shown = [
            _accuracy(own).shown(),
            interval([each.found["course"][-1]["found"] for each in own]).shown(".2f"),
            *(_bits([each.found["course"][-1]["clarity"][reading] for each in own]) for reading in READINGS),
            _bits([each.found["clarity of breaks"] for each in own]),
        ]
        lines.append(f"| {named(setting, base)} | {own[0].found['size']:,} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _order(results: Sequence[Result]) -> str:
    grouped = by_setting(results)
    base = next(iter(grouped))
    lines = [
        f"| setting | accuracy halfway at step | {' | '.join(f'{text}, later by' for text in SERIES.values())} |",
        f"| --- | --- |{' --- |' * len(SERIES)}",
    ]
    for setting, own in grouped.items():
        middles = [middle for each in own if (middle := halfway(steps(each), series(each)["accuracy"])) is not None]
        lags = [_lags(own, name) for name in SERIES]
        shown = ["none" if found is None else _counted(found, len(own)) for found in lags]
        start = interval(middles).shown(".0f") if middles else "none"
        lines.append(f"| {named(setting, base)} | {start} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _twin(results: Sequence[Result]) -> str:
    grouped = by_setting(results)
    base = next(iter(grouped))
    lines = ["| setting | accuracy | accuracy, twin | largest difference of a pattern |", "| --- | --- | --- | --- |"]
    for setting, own in grouped.items():
        twins = [each.found["twin"] for each in own]
        accuracies = [interval([t[name] for t in twins]).mean for name in ("accuracy", "twin_accuracy")]
        gap = max(t["pattern_gap"] for t in twins)
        lines.append(f"| {named(setting, base)} | {accuracies[0]:.4f} | {accuracies[1]:.4f} | {gap:.1e} |")
    return "\n".join(lines)


def _lags(own: Sequence[Result], name: str) -> Interval | None:
    found = [late for each in own if (late := lag(each, name)) is not None]
    return interval(found) if found else None


def _counted(found: Interval, seeds: int) -> str:
    return found.shown("+.2f") + ("" if found.count == seeds else f" ({found.count} of {seeds} seeds)")


def _bits(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return interval(known).shown(".2f") if known else "none"


def _accuracy(own: Sequence[Result]) -> Interval:
    return interval([series(each)["accuracy"][-1] for each in own])


def _above(found: Interval, floor: float) -> bool:
    return found.mean - (found.half or 0) > floor


def _mean(values: Any) -> float:
    every = list(values)
    return sum(every) / len(every)
