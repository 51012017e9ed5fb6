"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from allheads_labs.intervals import Interval, interval
from allheads_labs.lab import Claim, Result, claims_table
from allheads_labs.selection.learners import KINDS, Kind
from allheads_labs.selection.targets import WEIGHTS, exponent
from allheads_labs.selection.targets import Kind as Target

NAMES: dict[Kind, str] = {
    "transformer": "transformer",
    "uniform": "attention frozen at uniform",
    "convolution": "convolution",
    "connected": "fully connected",
}
#: (target, tokens, dimensions of a token).
Setting = tuple[Target, int, int]


def by_setting(results: Sequence[Result]) -> dict[Setting, dict[Kind, list[Result]]]:
    """Results by setting and learner; the first setting of a target is the one with all numbers of sequences."""
    found: dict[Setting, dict[Kind, list[Result]]] = {}
    for each in results:
        setting = (each.setting["target"], each.setting["length"], each.setting["d_token"])
        found.setdefault(setting, {}).setdefault(each.setting["learner"], []).append(each)
    return found


def swept(results: Sequence[Result]) -> dict[Setting, dict[Kind, list[Result]]]:
    """The settings with several numbers of sequences."""
    return {name: own for name, own in by_setting(results).items() if len(own["transformer"][0].found["errors"]) > 1}


def error_of(own: Sequence[Result], n: str) -> Interval:
    """Mean and interval of the test error with so many sequences."""
    return interval([each.found["errors"][n] for each in own])


def slope(errors: dict[str, float]) -> float:
    """The exponent b of error = c n^b, by least squares of logarithms.

    >>> round(slope({"100": 0.1, "400": 0.05, "1600": 0.025}), 6)
    -0.5
    """
    x, y = [math.log(int(n)) for n in errors], [math.log(value) for value in errors.values()]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def slope_of(own: Sequence[Result]) -> Interval:
    """A slope for each seed, then their mean and interval."""
    return interval([slope(each.found["errors"]) for each in own])


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    return {
        "selection:claims": claims_table(claims(results)),
        "selection:errors": _errors(results),
        "selection:growth": _growth(results),
        "selection:attention": _attention(results),
        "selection:twin": _twin(results),
    }


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out."""
    grouped = by_setting(results)
    longest = max((name for name in grouped if name[0] == "relative"), key=lambda name: name[1])
    made = _ratios(grouped[longest], longest[1])
    correlations = _correlations(results)
    if correlations:
        low = min(correlations, key=lambda each: each.mean)
        text = "attention orders the tokens as importance does, 2,048 sequences and more: rank correlation 0.85"
        made.append(Claim(text, f"at least {low.shown()}", low.mean >= 0.85))
    made += _falling(results) + _flat(results)
    twins = [each.found["twin"] for each in results if "twin" in each.found]
    gap, pattern = max(t["gap"] for t in twins), max(t["pattern_gap"] for t in twins)
    text = "twins give the same numbers, patterns within 1e-4"
    return [*made, Claim(text, f"{gap:.1e}, {pattern:.1e}", max(gap, pattern) <= 1e-4)]


def _ratios(own: dict[Kind, list[Result]], length: int) -> list[Claim]:
    n = max(own["transformer"][0].found["errors"], key=int)
    ours = error_of(own["transformer"], n).mean
    made = []
    others: tuple[tuple[Kind, int], ...] = (("uniform", 5), ("convolution", 3))
    for other, times in others:
        theirs = error_of(own[other], n).mean
        text = f"relative importance, {length - len(WEIGHTS)} irrelevant tokens: {times} times below {NAMES[other]}"
        made.append(Claim(text, f"{theirs / ours:.1f} times ({theirs:.3f} and {ours:.3f})", theirs / ours >= times))
    return made


def _correlations(results: Sequence[Result]) -> list[Interval]:
    return [
        interval([each.found["attention"][n]["correlation"] for each in own["transformer"]])
        for (target, _, _), own in by_setting(results).items()
        if target == "relative"
        for n in own["transformer"][0].found["errors"]
        if int(n) >= 2048
    ]


def _falling(results: Sequence[Result]) -> list[Claim]:
    made = []
    for (target, _, _), own in swept(results).items():
        theory, ours = exponent(target), slope_of(own["transformer"])
        if theory is not None:
            text = f"{target} smoothness: the transformer's error falls at least as the theory says, n^{theory:.2f}"
            made.append(Claim(text, f"n^{ours.shown('.2f')}", ours.mean - (ours.half or 0) <= theory))
    return made


def _flat(results: Sequence[Result]) -> list[Claim]:
    """The transformer in a setting with more tokens, or more dimensions, against the first setting of its target."""
    made: list[Claim] = []
    first: dict[str, tuple[int, int, list[Result]]] = {}
    for (target, length, d), own in by_setting(results).items():
        first.setdefault(target, (length, d, own["transformer"]))
        start, dimensions, base = first[target]
        if (length, d) == (start, dimensions) or length < start:
            continue
        n = max(own["transformer"][0].found["errors"], key=int)
        less, more = error_of(base, n), error_of(own["transformer"], n)
        grown = f"{start} to {length} tokens" if length > start else f"tokens of {dimensions} to {d} dimensions"
        apart = more.mean - (more.half or 0) > less.mean + (less.half or 0)
        text = f"{target}, {grown}: the transformer's error stays flat (intervals overlap)"
        made.append(Claim(text, f"{less.shown()} to {more.shown()}", not apart))
    return made


def _errors(results: Sequence[Result]) -> str:
    several = swept(results)
    sizes = list(next(iter(several.values()))["transformer"][0].found["errors"])
    lines = [
        f"| target | learner | parameters | {' | '.join(f'n = {int(n):,}' for n in sizes)} | slope | theory |",
        f"| --- | --- | --- |{' --- |' * (len(sizes) + 2)}",
    ]
    for (target, _, _), own in several.items():
        theory = exponent(target)
        for kind in KINDS:
            shown = [error_of(own[kind], n).shown() for n in sizes]
            about = f"{target} | {NAMES[kind]} | {own[kind][0].found['parameters']:,}"
            last = f"{slope_of(own[kind]).shown('.2f')} | {'none' if theory is None else format(theory, '.2f')}"
            lines.append(f"| {about} | {' | '.join(shown)} | {last} |")
    return "\n".join(lines)


def _growth(results: Sequence[Result]) -> str:
    fewest = min((list(own["transformer"][0].found["errors"]) for own in by_setting(results).values()), key=len)
    n = max(fewest, key=int)
    lines = [
        f"| target, n = {int(n):,} | tokens | dimensions | {' | '.join(NAMES.values())} |",
        f"| --- | --- | --- |{' --- |' * len(NAMES)}",
    ]
    for (target, length, d), own in sorted(by_setting(results).items()):
        shown = " | ".join(error_of(own[kind], n).shown() for kind in KINDS)
        lines.append(f"| {target} | {length} | {d} | {shown} |")
    return "\n".join(lines)


def _attention(results: Sequence[Result]) -> str:
    lines = [
        "| target | tokens | dimensions | n | rank correlation, heads averaged | single heads | weight on the three "
        "that count | if uniform | error | with attention frozen after training |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (target, length, d), own in by_setting(results).items():
        for n in own["transformer"][0].found["errors"]:
            seen = [each.found["attention"][n] for each in own["transformer"]]
            single = sorted(value for each in seen for value in each["heads"])
            cells = [
                interval([each["correlation"] for each in seen]).shown(),
                f"{single[0]:.2f} to {single[-1]:.2f}",
                interval([each["weight"] for each in seen]).shown(".2f"),
                f"{len(WEIGHTS) / (length + 1):.2f}",
                error_of(own["transformer"], n).shown(),
                interval([each["error when frozen"] for each in seen]).shown(".2f"),
            ]
            lines.append(f"| {target} | {length} | {d} | {int(n):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _twin(results: Sequence[Result]) -> str:
    lines = [
        "| target | tokens | dimensions | error | error, twin | largest difference of a number | of a pattern |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (target, length, d), own in by_setting(results).items():
        twins = [each.found["twin"] for each in own["transformer"]]
        errors = " | ".join(f"{interval([t[name] for t in twins]).mean:.6f}" for name in ("error", "twin_error"))
        gaps = " | ".join(f"{max(t[name] for t in twins):.1e}" for name in ("gap", "pattern_gap"))
        lines.append(f"| {target} | {length} | {d} | {errors} | {gaps} |")
    return "\n".join(lines)
