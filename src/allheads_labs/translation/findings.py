"""What came out: tables, and the claims that they bear out or not."""

from __future__ import annotations

from collections.abc import Sequence

from allheads_labs.intervals import Interval, interval
from allheads_labs.lab import Claim, Result, claims_table


def by_setting(results: Sequence[Result]) -> dict[tuple[int, int], list[Result]]:
    """Results by (layers, heads)."""
    found: dict[tuple[int, int], list[Result]] = {}
    for each in results:
        found.setdefault((each.setting["layers"], each.setting["heads"]), []).append(each)
    return found


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    return {
        "translation:claims": claims_table(claims(results)),
        "translation:alignment": _alignment(results),
        "translation:twin": _twin(results),
    }


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the lab was made to find out, first for two layers on each side with one head each."""
    own = by_setting(results)[2, 1]
    right, guess = _exact(own), _measure(own, "diagonal", "f1")
    gap = max(gap for each in results for gap in each.found["twin"]["pattern_gaps"].values())
    same = all(each.found["exact"] == each.found["twin"]["exact"] for each in results)
    return [
        Claim("99 % of held-out sentences are translated exactly", right.shown(".1f", 100), right.mean >= 0.99),
        Claim("twins translate the same, patterns within 1e-4", f"{gap:.1e}", same and gap <= 1e-4),
        Claim("links are not where the words stand anyway: the diagonal is below 0.5", guess.shown(), guess.mean < 0.5),
        *_links_are_found(results),
    ]


def _links_are_found(results: Sequence[Result]) -> list[Claim]:
    made, grouped = [], by_setting(results)
    for layers, heads, where in (
        (2, 1, "last layer"),
        (2, 1, "layers averaged"),
        (1, 1, "last layer"),
        (2, 4, "last layer"),
    ):
        if (layers, heads) in grouped:
            f1 = _measure(grouped[layers, heads], where, "f1")
            text = f"cross-attention finds the links, F1 of 0.9: {layers}+{layers} layers, {heads} cross heads, {where}"
            made.append(Claim(text.replace("1 cross heads", "1 cross head"), f1.shown(), f1.mean >= 0.9))
    return made


def _exact(own: Sequence[Result]) -> Interval:
    return interval([each.found["exact"] for each in own])


def _measure(own: Sequence[Result], layer: str, name: str) -> Interval:
    return interval([each.found["alignment"][layer][name] for each in own])


def _alignment(results: Sequence[Result]) -> str:
    lines = [
        "| layers | heads | seeds | exact match, % | cross-attention of | precision | recall | F1 | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (layers, heads), own in by_setting(results).items():
        seconds = interval([each.found["training_seconds"] for each in own]).mean
        for layer in own[0].found["alignment"]:
            if layer != "diagonal":
                values = " | ".join(_measure(own, layer, name).shown() for name in ("precision", "recall", "f1"))
                about = f"{layers}+{layers} | {heads} | {len(own)} | {_exact(own).shown('.1f', 100)}"
                lines.append(f"| {about} | {layer} | {values} | {seconds:.0f} |")
    values = " | ".join(_measure(results, "diagonal", name).shown() for name in ("precision", "recall", "f1"))
    lines.append(f"| none |  | {len(results)} |  | diagonal | {values} |  |")
    return "\n".join(lines)


def _twin(results: Sequence[Result]) -> str:
    lines = [
        "| layers | heads | exact match of both, % | largest difference, encoder | decoder | cross | F1, twin |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (layers, heads), own in by_setting(results).items():
        twins = [each.found["twin"] for each in own]
        shares = f"{_exact(own).mean * 100:.2f}, {interval([t['exact'] for t in twins]).mean * 100:.2f}"
        gaps = " | ".join(f"{max(t['pattern_gaps'][kind] for t in twins):.1e}" for kind in twins[0]["pattern_gaps"])
        f1 = interval([t["alignment"]["f1"] for t in twins]).shown()
        lines.append(f"| {layers}+{layers} | {heads} | {shares} | {gaps} | {f1} |")
    return "\n".join(lines)
