"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from allheads_labs.kit.lab import Claim, Result
from allheads_labs.kit.table import Statistic, average, claims_table, count, first, frame, mean, table, where
from allheads_labs.recurrence import costs
from allheads_labs.recurrence.learners import KINDS, Kind

NAMES: dict[Kind, str] = {"transformer": "transformer", "lstm": "LSTM", "gru": "GRU"}
#: Loads that the claims are about.
LIGHT, HEAVY = 4, 64


def learners(results: Sequence[Result], over: str = "") -> pd.DataFrame:
    """Results of learners, each with its ``setting``; what costs are measured of is left out."""
    rows = frame((result for result in results if "kind" in result.setting), over)
    settings = zip(rows["kind"], rows["steps"], rows["rate"], strict=True)
    return rows.assign(
        learner=rows["kind"].map(NAMES), setting=[f"{kind} {steps} {rate}" for kind, steps, rate in settings]
    )


def training_costs(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each training step that was timed: its seconds (``value``), products in sequence, and arithmetic."""
    rows = frame((result for result in results if "cost of" in result.setting), "seconds")
    rows = rows.assign(kind=rows["cost of"], length=rows["seconds"].astype(int))
    pairs = list(zip(rows["kind"], rows["length"], strict=True))
    return rows.assign(
        sequential=[costs.sequential_steps(*pair) for pair in pairs], flops=[costs.flops(*pair) for pair in pairs]
    )


def cells(rows: pd.DataFrame, start: str) -> list[str]:
    """Columns of accuracies whose cells start like this."""
    return [column for column in rows if column.startswith(f"accuracies/{start}")]


def longest_light(rows: pd.DataFrame) -> str:
    """The cell with four pairs and the longest distance within the length of training."""
    return cells(rows, f"{LIGHT} pairs, length 256,")[-1]


def best(results: Sequence[Result], over: str = "") -> pd.DataFrame:
    """Each kind in the setting that is best with four pairs: the one that favours recurrent nets in the control.

    Of those that ran with all seeds; parts of the sweep have fewer.
    """
    rows, chosen = learners(results), learners(results, over)
    seeds = rows.groupby("setting")["seed"].transform("size")
    means = rows[seeds == seeds.max()].groupby(["kind", "setting"])[longest_light(rows)].mean()
    return pd.concat([chosen[chosen["setting"] == means[kind].idxmax()] for kind in KINDS if kind in means])


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    every, chosen = learners(results), best(results)
    gradients = best(results, "gradients").replace({"start": "at initialisation", "end": "after training"})
    return {
        "recurrence:claims": claims_table(claims(results)),
        "recurrence:recall": table(best(results, "accuracies"), ["accuracies"], _recall(chosen)),
        "recurrence:sweep": table(every, ["setting"], _sweep(every)),
        "recurrence:gradients": table(gradients, ["kind", "gradients"], _gradients(gradients)),
        "recurrence:costs": table(training_costs(results), ["length"], {"length": first("length", ","), **_COSTS}),
        "recurrence:twin": table(chosen[chosen["kind"] == "transformer"], ["seed"], _TWIN),
    }


def _recall(chosen: pd.DataFrame) -> dict[str, Statistic]:
    sizes = zip(chosen["kind"], chosen["learner"], chosen["size"], strict=True)
    columns = {f"{name} ({size:,} parameters)": kind for kind, name, size in sizes}
    shares = {name: where(mean("value", ".1f", 100), kind=kind) for name, kind in columns.items()}
    return {"recall, %": first("accuracies"), **shares}


def _sweep(every: pd.DataFrame) -> dict[str, Statistic]:
    shown = [longest_light(every), *cells(every, f"{HEAVY} pairs")]
    return {
        "learner": first("learner"),
        "steps": first("steps", ","),
        "rate": first("rate", "g"),
        "seeds": count,
        **{cell.removeprefix("accuracies/"): mean(cell, ".1f", 100) for cell in shown},
        "s": average("training_seconds", ".0f"),
    }


def _gradients(rows: pd.DataFrame) -> dict[str, Statistic]:
    distances = [column for column in rows if column.startswith("value/")]
    return {
        "norm at the distant input": first("learner"),
        "when": first("gradients"),
        **{column.replace("value/", "distance "): average(column, ".1e") for column in distances},
    }


_COSTS: dict[str, Statistic] = {
    f"{NAMES[kind]}: {name}": where(statistic, kind=kind)
    for name, statistic in (
        ("steps in sequence", first("sequential", ",")),
        ("GFLOP", average("flops", ".2f", 1e-9)),
        ("ms", mean("value", ".0f", 1e3)),
    )
    for kind in KINDS
}
_TWIN: dict[str, Statistic] = {
    "seed": first("seed"),
    "recall, transformer": first("twin/accuracy", ".4f"),
    "recall, twin": first("twin/twin_accuracy", ".4f"),
    "largest difference of a pattern": first("twin/pattern_gap", ".1e"),
    "of a logit": first("twin/logit_gap", ".1e"),
}


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out; settings of the sweep count one by one, each as its mean over seeds."""
    every, chosen = learners(results), best(results)
    means = chosen.groupby("kind").mean(numeric_only=True)
    far = [cell for cell in cells(every, f"{HEAVY} pairs") if int(cell.split()[-1]) >= 256]
    ours = means.loc["transformer", far].min()
    worst = every[every["kind"] != "transformer"].groupby("setting")[far].mean().max(axis=None)
    light = means[longest_light(every)]
    start, end = (means.loc["lstm", f"gradients/{when}/256"] for when in ("start", "end"))
    seconds = training_costs(results).groupby(["length", "kind"])["value"].mean().unstack()
    slower = seconds.index[seconds["transformer"] > seconds["lstm"]]
    twins = chosen[chosen["kind"] == "transformer"]
    gap, same = twins["twin/pattern_gap"].max(), (twins["twin/accuracy"] == twins["twin/twin_accuracy"]).all()
    light_claims = [
        Claim(f"{LIGHT} pairs, distance 256: the best {NAMES[kind]} recalls 90 %", _percent(share), share > 0.9)
        for kind, share in light[list(KINDS[1:])].items()
    ]
    text = "there no recurrent net reaches 60 %, in any setting of the sweep"
    return [
        Claim(f"{HEAVY} pairs, distances of 256 and more: the transformer recalls 99 %", _percent(ours), ours >= 0.99),
        Claim(text, f"at most {_percent(worst)}", worst < 0.6),
        *light_claims,
        Claim("gradients vanish at distance 256 in an LSTM, untrained", f"{start:.0e}", start < 1e-6),
        Claim("and after training, too", f"{end:.0e}", end < 1e-6),
        Claim(
            "a training step of the transformer is faster on this machine",
            f"LSTM faster at {', '.join(map(str, slower))}" if len(slower) else "the transformer is faster everywhere",
            not len(slower),
        ),
        Claim("its twin recalls the same, patterns within 1e-4", f"{gap:.1e}", same and gap <= 1e-4),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
