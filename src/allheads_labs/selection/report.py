"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from allheads_labs.kit.lab import Claim, Result
from allheads_labs.kit.statistics import Interval, interval
from allheads_labs.kit.table import Statistic, average, claims_table, first, frame, largest, mean, table, where
from allheads_labs.selection.learners import KINDS, Kind
from allheads_labs.selection.targets import WEIGHTS, exponent

NAMES: dict[Kind, str] = {
    "transformer": "transformer",
    "uniform": "attention frozen at uniform",
    "convolution": "convolution",
    "connected": "fully connected",
}
#: What a learner is trained on; the first setting of a target is the one with all numbers of sequences.
SETTING = ["target", "length", "d_token"]


def errors(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each test error (``value``) with ``n`` training sequences."""
    rows = frame(results, "errors")
    return rows.assign(n=rows["errors"].astype(int), name=rows["learner"].map(NAMES))


def swept(results: Sequence[Result]) -> pd.DataFrame:
    """Errors in the settings with several numbers of sequences."""
    rows = errors(results)
    return rows[rows.groupby(SETTING)["n"].transform("nunique") > 1]


def slope(rows: pd.DataFrame) -> Interval:
    """The exponent b of error = c n^b, by least squares of logarithms: one for each seed, then their mean.

    >>> rows = pd.DataFrame({"seed": 0, "n": [100, 400, 1600], "value": [0.1, 0.05, 0.025]})
    >>> slope(rows).shown(".2f")
    '-0.50'
    """
    return interval([np.polyfit(np.log(seed["n"]), np.log(seed["value"]), 1)[0] for _, seed in rows.groupby("seed")])


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    every, several = errors(results), swept(results)
    attentive = [result for result in results if "twin" in result.found]
    fewest = every.groupby(SETTING)["n"].unique()
    n = int(min(fewest, key=len).max())
    return {
        "selection:claims": claims_table(claims(results)),
        "selection:errors": table(several, [*SETTING, "learner"], _errors(several["n"].unique().tolist())),
        "selection:growth": table(every[every["n"] == n].sort_values(SETTING, kind="stable"), SETTING, _growth(n)),
        "selection:attention": table(_attention(attentive), [*SETTING, "n"], _ATTENTION),
        "selection:twin": table(frame(attentive), SETTING, _TWIN),
    }


def _errors(sizes: Sequence[int]) -> dict[str, Statistic]:
    def theory(group: pd.DataFrame) -> str:
        known = exponent(group["target"].iloc[0])
        return "none" if known is None else f"{known:.2f}"

    return {
        "target": first("target"),
        "learner": first("name"),
        "parameters": first("parameters", ","),
        **{f"n = {n:,}": where(mean("value"), n=n) for n in sizes},
        "slope": lambda group: slope(group).shown(".2f"),
        "theory": theory,
    }


def _growth(n: int) -> dict[str, Statistic]:
    return {
        f"target, n = {n:,}": first("target"),
        "tokens": first("length"),
        "dimensions": first("d_token"),
        **{NAMES[kind]: where(mean("value"), learner=kind) for kind in KINDS},
    }


def _attention(attentive: Sequence[Result]) -> pd.DataFrame:
    """A row for each learner whose attention was looked at, with its test error."""
    rows = frame(attentive, "attention")
    wrong = [result.found["errors"][n] for result in attentive for n in result.found["attention"]]
    return rows.assign(n=rows["attention"].astype(int), error=wrong, uniform=len(WEIGHTS) / (rows["length"] + 1))


def _single_heads(group: pd.DataFrame) -> str:
    single = group["value/heads"].explode()
    return f"{single.min():.2f} to {single.max():.2f}"


_ATTENTION: dict[str, Statistic] = {
    "target": first("target"),
    "tokens": first("length"),
    "dimensions": first("d_token"),
    "n": first("n", ","),
    "rank correlation, heads averaged": mean("value/correlation"),
    "single heads": _single_heads,
    "weight on the three that count": mean("value/weight", ".2f"),
    "if uniform": first("uniform", ".2f"),
    "error": mean("error"),
    "with attention frozen after training": mean("value/error when frozen", ".2f"),
}
_TWIN: dict[str, Statistic] = {
    "target": first("target"),
    "tokens": first("length"),
    "dimensions": first("d_token"),
    "error": average("twin/error", ".6f"),
    "error, twin": average("twin/twin_error", ".6f"),
    "largest difference of a number": largest("twin/gap"),
    "of a pattern": largest("twin/pattern_gap"),
}


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out."""
    twins = frame(result for result in results if "twin" in result.found)
    gap, pattern = twins["twin/gap"].max(), twins["twin/pattern_gap"].max()
    text = "twins give the same numbers, patterns within 1e-4"
    return [
        *_ratios(errors(results)),
        *_ordered(results),
        *_falling(swept(results)),
        *_flat(errors(results)),
        Claim(text, f"{gap:.1e}, {pattern:.1e}", max(gap, pattern) <= 1e-4),
    ]


def _ratios(rows: pd.DataFrame) -> Iterator[Claim]:
    """The longest relative setting, with the most sequences: the transformer against others."""
    relative = rows[rows["target"] == "relative"]
    length = relative["length"].max()
    longest = relative[relative["length"] == length]
    means = longest[longest["n"] == longest["n"].max()].groupby("learner")["value"].mean()
    ours = means["transformer"]
    others: tuple[tuple[Kind, int], ...] = (("uniform", 5), ("convolution", 3))
    for other, times in others:
        theirs = means[other]
        text = f"relative importance, {length - len(WEIGHTS)} irrelevant tokens: {times} times below {NAMES[other]}"
        measured = f"{theirs / ours:.1f} times ({theirs:.3f} and {ours:.3f})"
        yield Claim(text, measured, theirs / ours >= times)


def _ordered(results: Sequence[Result]) -> Iterator[Claim]:
    rows = _attention([result for result in results if "attention" in result.found])
    groups = rows[(rows["target"] == "relative") & (rows["n"] >= 2048)].groupby([*SETTING, "n"])
    if len(groups):
        low = min((interval(values) for _, values in groups["value/correlation"]), key=lambda mean: mean.mean)
        text = "attention orders the tokens as importance does, 2,048 sequences and more: rank correlation 0.85"
        yield Claim(text, f"at least {low.shown()}", low.mean >= 0.85)


def _falling(rows: pd.DataFrame) -> Iterator[Claim]:
    for (target, *_), group in rows[rows["learner"] == "transformer"].groupby(SETTING, sort=False):
        theory, ours = exponent(target), slope(group)
        if theory is not None:
            text = f"{target} smoothness: the transformer's error falls at least as the theory says, n^{theory:.2f}"
            yield Claim(text, f"n^{ours.shown('.2f')}", ours.low <= theory)


def _flat(rows: pd.DataFrame) -> Iterator[Claim]:
    """The transformer in a setting with more tokens, or more dimensions, against the first setting of its target."""
    firsts: dict[str, tuple[int, int, pd.DataFrame]] = {}
    for (target, length, d_token), group in rows[rows["learner"] == "transformer"].groupby(SETTING, sort=False):
        tokens, dimensions, base = firsts.setdefault(target, (length, d_token, group))
        if (length, d_token) == (tokens, dimensions) or length < tokens:
            continue
        less, more = (interval(setting[setting["n"] == group["n"].max()]["value"]) for setting in (base, group))
        grown = f"{tokens} to {length} tokens" if length > tokens else f"tokens of {dimensions} to {d_token} dimensions"
        text = f"{target}, {grown}: the transformer's error stays flat (intervals overlap)"
        yield Claim(text, f"{less.shown()} to {more.shown()}", more.low <= less.high)
