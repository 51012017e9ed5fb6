"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from allheads_labs.kit.lab import Claim, Result
from allheads_labs.kit.statistics import interval
from allheads_labs.kit.table import Statistic, average, claims_table, count, first, frame, largest, mean, table

#: Where links are read off, for claims: layers on each side, heads of an attention, and which layer.
READINGS = ((2, 1, "last layer"), (2, 1, "layers averaged"), (1, 1, "last layer"), (2, 4, "last layer"))


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    links = _links(results)
    # The diagonal looks at no word: one row for all models, after theirs.
    ordered = links.sort_values("alignment", key=lambda names: names == "diagonal", kind="stable")
    models = frame(results)
    return {
        "translation:claims": claims_table(claims(results)),
        "translation:alignment": table(ordered, ["layers", "heads", "alignment"], _ALIGNMENT),
        "translation:twin": table(models, ["layers", "heads"], _twin(models)),
    }


def _links(results: Sequence[Result]) -> pd.DataFrame:
    """A row for every way to read links off a model, and for the diagonal, which is of no model."""
    rows = frame(results, "alignment")
    diagonal = rows["alignment"] == "diagonal"
    layers, heads = rows["layers"].map("{0}+{0}".format), rows["heads"].astype(str)
    return rows.assign(layers=layers.where(~diagonal, "none"), heads=heads.where(~diagonal, ""))


def _of_model(statistic: Statistic) -> Statistic:
    return lambda group: "" if group["layers"].iloc[0] == "none" else statistic(group)


_ALIGNMENT: dict[str, Statistic] = {
    "layers": first("layers"),
    "heads": first("heads"),
    "seeds": count,
    "exact match, %": _of_model(mean("exact", ".1f", 100)),
    "cross-attention of": first("alignment"),
    "precision": mean("value/precision"),
    "recall": mean("value/recall"),
    "F1": mean("value/f1"),
    "s": _of_model(average("training_seconds", ".0f")),
}


def _twin(models: pd.DataFrame) -> dict[str, Statistic]:
    exact = [average(column, ".2f", 100) for column in ("exact", "twin/exact")]
    gaps = [column for column in models if column.startswith("twin/pattern_gaps/")]
    names = [column.rpartition("/")[2] for column in gaps]
    return {
        "layers": lambda group: "{0}+{0}".format(first("layers")(group)),
        "heads": first("heads"),
        "exact match of both, %": lambda group: ", ".join(share(group) for share in exact),
        f"largest difference, {names[0]}": largest(gaps[0]),
        **{name: largest(gap) for name, gap in zip(names[1:], gaps[1:], strict=True)},
        "F1, twin": mean("twin/alignment/f1"),
    }


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out, first for two layers on each side with one head each."""
    models = frame(results)
    first_model = models[(models["layers"] == 2) & (models["heads"] == 1)]
    right, guess = interval(first_model["exact"]), interval(first_model["alignment/diagonal/f1"])
    gap = models.filter(like="twin/pattern_gaps/").max(axis=None)
    same = (models["exact"] == models["twin/exact"]).all()
    return [
        Claim("99 % of held-out sentences are translated exactly", right.shown(".1f", 100), right.mean >= 0.99),
        Claim("twins translate the same, patterns within 1e-4", f"{gap:.1e}", same and gap <= 1e-4),
        Claim("links are not where the words stand anyway: the diagonal is below 0.5", guess.shown(), guess.mean < 0.5),
        *_links_are_found(models),
    ]


def _links_are_found(models: pd.DataFrame) -> Iterator[Claim]:
    for layers, heads, where in READINGS:
        model = models[(models["layers"] == layers) & (models["heads"] == heads)]
        if len(model):
            f1 = interval(model[f"alignment/{where}/f1"])
            about = f"{layers}+{layers} layers, {heads} cross head{'s' if heads > 1 else ''}, {where}"
            yield Claim(f"cross-attention finds the links, F1 of 0.9: {about}", f1.shown(), f1.mean >= 0.9)
