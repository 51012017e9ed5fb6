"""Tables that are declared: rows are groups of results, a column is a name and a statistic of a group."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from allheads_labs.kit.lab import Claim, Result
from allheads_labs.kit.statistics import interval

#: What a cell says about the results of its row.
Statistic = Callable[[pd.DataFrame], str]


def frame(results: Iterable[Result], over: str = "") -> pd.DataFrame:
    """A row for each result: its setting, its seed, and what it found; entries of a mapping are columns ``name/key``.

    With ``over`` there is a row for each entry of this mapping among the findings, of the results that have it. Its key
    is the column ``over``, its value ``value``, or ``value/name`` if it is a mapping itself.

    >>> one = Result({"size": 3}, 0, {"loss": {"start": 2.0, "end": 1.0}}, 9.0)
    >>> frame([one])["loss/end"].tolist(), frame([one], "loss")["value"].tolist()
    ([1.0], [2.0, 1.0])
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        row = {**result.setting, "seed": result.seed, **result.found}
        if over:
            rows += [{**row, over: key, "value": value} for key, value in result.found.get(over, {}).items()]
        else:
            rows.append(row)
    return pd.json_normalize(rows, sep="/")


def table(results: pd.DataFrame, by: Sequence[str], columns: Mapping[str, Statistic]) -> str:
    """Markdown with a row for each group of results that agree in the columns ``by``, in the order of the results.

    >>> print(table(pd.DataFrame({"size": [3, 3], "loss": [1.0, 2.0]}), ["size"], {"size": first("size"), "n": count}))
    | size | n |
    | --- | --- |
    | 3 | 2 |
    """
    groups = [group for _, group in results.groupby(list(by), sort=False, dropna=False)]
    return markdown(list(columns), [[cell(group) for cell in columns.values()] for group in groups])


def markdown(header: Sequence[str], rows: Iterable[Iterable[str]], right: Collection[str] = ()) -> str:
    """A table of cells that are text already; columns named in ``right`` are aligned there.

    >>> print(markdown(["layer", "error"], [["0", "1e-7"]], right=["error"]))
    | layer | error |
    | --- | ---: |
    | 0 | 1e-7 |
    """
    rule = ["---:" if name in right else "---" for name in header]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def claims_table(claims: Iterable[Claim]) -> str:
    """What was claimed, what was measured, and whether the data say so too.

    >>> print(claims_table([Claim("it holds", "0.99", True)]))
    | claim | measured | holds |
    | --- | --- | --- |
    | it holds | 0.99 | yes |
    """
    rows = ((claim.claim, claim.measured, "yes" if claim.holds else "**no**") for claim in claims)
    return markdown(("claim", "measured", "holds"), rows)


def mean(column: str, form: str = ".3f", scale: float = 1.0) -> Statistic:
    """The mean with its interval over seeds; "none" where no result has a value."""

    def shown(group: pd.DataFrame) -> str:
        known = group[column].dropna()
        return interval(known).shown(form, scale) if len(known) else "none"

    return shown


def average(column: str, form: str, scale: float = 1.0) -> Statistic:
    """The mean alone."""
    return lambda group: format(scale * group[column].mean(), form)


def largest(column: str, form: str = ".1e") -> Statistic:
    """The largest value."""
    return lambda group: format(group[column].max(), form)


def first(column: str, form: str = "") -> Statistic:
    """What the results of a row have in common: the value of the first."""
    return lambda group: format(group[column].iloc[0], form)


def count(group: pd.DataFrame) -> str:
    """How many results there are."""
    return str(len(group))


def where(statistic: Statistic, **values: Any) -> Statistic:
    """A statistic of those results only that have these values."""
    return lambda group: statistic(group[(group[list(values)] == pd.Series(values)).all(axis=1)])
