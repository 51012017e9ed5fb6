"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from allheads_labs.intervals import Interval, interval
from allheads_labs.lab import Claim, Result, claims_table
from allheads_labs.recurrence import costs
from allheads_labs.recurrence.learners import KINDS, Kind

NAMES: dict[Kind, str] = {"transformer": "transformer", "lstm": "LSTM", "gru": "GRU"}
#: Loads that the claims are about.
LIGHT, HEAVY = 4, 64

Setting = tuple[Kind, int, float]


def by_setting(results: Sequence[Result]) -> dict[Setting, list[Result]]:
    """Results of learners, by (kind, steps, learning rate)."""
    found: dict[Setting, list[Result]] = defaultdict(list)
    for each in results:
        if "kind" in each.setting:
            found[each.setting["kind"], each.setting["steps"], each.setting["rate"]].append(each)
    return dict(found)


def recall_of(results: Sequence[Result], cell: str) -> Interval:
    """Mean and interval of a cell's accuracy."""
    return interval([each.found["accuracies"][cell] for each in results])


def longest_light(results: Sequence[Result]) -> str:
    """The cell with four pairs and the longest distance within the length of training."""
    cells = [cell for cell in next(iter(results)).found["accuracies"] if cell.startswith(f"{LIGHT} pairs, length 256,")]
    return cells[-1]


def best(results: Sequence[Result]) -> dict[Kind, list[Result]]:
    """Each kind in the setting that is best with four pairs: the one that favours recurrent nets in the control.

    Of those that ran with all seeds; parts of the sweep have fewer.
    """
    grouped = by_setting(results)
    seeds = max(map(len, grouped.values()))
    chosen: dict[Kind, list[Result]] = {}
    for (kind, _, _), own in sorted(grouped.items()):
        if len(own) < seeds:
            continue
        cell = longest_light(own)
        if kind not in chosen or recall_of(own, cell).mean > recall_of(chosen[kind], cell).mean:
            chosen[kind] = own
    return {kind: chosen[kind] for kind in KINDS if kind in chosen}


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    return {
        "recurrence:claims": claims_table(claims(results)),
        "recurrence:recall": _recall(results),
        "recurrence:sweep": _sweep(results),
        "recurrence:gradients": _gradients(results),
        "recurrence:costs": _costs(results),
        "recurrence:twin": _twin(results),
    }


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out; settings of the sweep count one by one, each as its mean over seeds."""
    grouped, chosen = by_setting(results), best(results)
    cells = [cell for cell in chosen["transformer"][0].found["accuracies"] if cell.startswith(f"{HEAVY} pairs")]
    far = [cell for cell in cells if int(cell.split()[-1]) >= 256]
    ours = min(recall_of(chosen["transformer"], cell).mean for cell in far)
    recurrent = {setting: own for setting, own in grouped.items() if setting[0] != "transformer"}
    worst = max(recall_of(own, cell).mean for own in recurrent.values() for cell in far)
    light = {kind: recall_of(chosen[kind], longest_light(chosen[kind])).mean for kind in KINDS[1:]}
    made = [
        Claim(f"{HEAVY} pairs, distances of 256 and more: the transformer recalls 99 %", _percent(ours), ours >= 0.99),
        Claim(
            "there no recurrent net reaches 60 %, in any setting of the sweep",
            f"at most {_percent(worst)}",
            worst < 0.6,
        ),
    ]
    for kind, share in light.items():
        text = f"{LIGHT} pairs, distance 256: the best {NAMES[kind]} recalls 90 %"
        made.append(Claim(text, _percent(share), share > 0.9))
    return made + _other_claims(results, chosen)


def _other_claims(results: Sequence[Result], chosen: dict[Kind, list[Result]]) -> list[Claim]:
    start, end = (_gradient(chosen["lstm"], when, "256").mean for when in ("start", "end"))
    slower = [
        length
        for length, by in seconds_by_length(results).items()
        if "transformer" in by and "lstm" in by and by["transformer"].mean > by["lstm"].mean
    ]
    measured = f"LSTM faster at {', '.join(map(str, slower))}" if slower else "the transformer is faster everywhere"
    twins = [each.found["twin"] for each in chosen["transformer"]]
    gap, same = max(t["pattern_gap"] for t in twins), all(t["accuracy"] == t["twin_accuracy"] for t in twins)
    return [
        Claim("gradients vanish at distance 256 in an LSTM, untrained", f"{start:.0e}", start < 1e-6),
        Claim("and after training, too", f"{end:.0e}", end < 1e-6),
        Claim("a training step of the transformer is faster on this machine", measured, not slower),
        Claim("its twin recalls the same, patterns within 1e-4", f"{gap:.1e}", same and gap <= 1e-4),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _recall(results: Sequence[Result]) -> str:
    chosen = best(results)
    cells = chosen["transformer"][0].found["accuracies"]
    heads = [f"{NAMES[kind]} ({own[0].found['size']:,} parameters)" for kind, own in chosen.items()]
    lines = [f"| recall, % | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for cell in cells:
        shown = [recall_of(own, cell).shown(".1f", 100) for own in chosen.values()]
        lines.append(f"| {cell} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _sweep(results: Sequence[Result]) -> str:
    grouped = by_setting(results)
    cells = [longest_light(results_of(grouped))]
    every = list(next(iter(grouped.values()))[0].found["accuracies"])
    cells += [cell for cell in every if cell.startswith(f"{HEAVY} pairs")]
    lines = [f"| learner | steps | rate | seeds | {' | '.join(cells)} | s |", f"| --- |{' --- |' * (len(cells) + 4)}"]
    for (kind, steps, rate), own in grouped.items():
        shown = [recall_of(own, cell).shown(".1f", 100) for cell in cells]
        seconds = interval([each.found["training_seconds"] for each in own]).mean
        lines.append(f"| {NAMES[kind]} | {steps:,} | {rate:g} | {len(own)} | {' | '.join(shown)} | {seconds:.0f} |")
    return "\n".join(lines)


def results_of(grouped: dict[Setting, list[Result]]) -> list[Result]:
    """All of them, in the order of their settings."""
    return [each for own in grouped.values() for each in own]


def _gradient(own: Sequence[Result], when: str, distance: str) -> Interval:
    return interval([each.found["gradients"][when][distance] for each in own])


def _gradients(results: Sequence[Result]) -> str:
    distances = list(next(iter(best(results).values()))[0].found["gradients"]["start"])
    lines = [
        f"| norm at the distant input | when | {' | '.join(f'distance {each}' for each in distances)} |",
        f"| --- | --- |{' --- |' * len(distances)}",
    ]
    for kind, own in best(results).items():
        for when, label in (("start", "at initialisation"), ("end", "after training")):
            shown = [f"{_gradient(own, when, each).mean:.1e}" for each in distances]
            lines.append(f"| {NAMES[kind]} | {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def seconds_by_length(results: Sequence[Result]) -> dict[int, dict[Kind, Interval]]:
    """Wall time of a training step, by length and kind."""
    found: dict[int, dict[Kind, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in results:
        if "cost of" in each.setting:
            for length, seconds in each.found["seconds"].items():
                found[int(length)][each.setting["cost of"]].append(seconds)
    return {length: {kind: interval(values) for kind, values in by.items()} for length, by in found.items()}


def _costs(results: Sequence[Result]) -> str:
    heads = [f"{NAMES[kind]}: {what}" for what in ("steps in sequence", "GFLOP", "ms") for kind in KINDS]
    lines = [f"| length | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for length, by in seconds_by_length(results).items():
        cells: list[Any] = [f"{costs.sequential_steps(kind, length):,}" for kind in KINDS]
        cells += [f"{costs.flops(kind, length) / 1e9:.2f}" for kind in KINDS]
        cells += [by[kind].shown(".0f", 1e3) for kind in KINDS]
        lines.append(f"| {length:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _twin(results: Sequence[Result]) -> str:
    lines = [
        "| seed | recall, transformer | recall, twin | largest difference of a pattern | of a logit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in best(results)["transformer"]:
        twin = each.found["twin"]
        gaps = f"{twin['pattern_gap']:.1e} | {twin['logit_gap']:.1e}"
        lines.append(f"| {each.seed} | {twin['accuracy']:.4f} | {twin['twin_accuracy']:.4f} | {gaps} |")
    return "\n".join(lines)
