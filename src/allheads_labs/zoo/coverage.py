"""Every family that TransformerLens knows: the smallest random model, its twin, and what came out.

A family counts as converted if every layer is within its certified bound, and what the twin gives is no further from
the source than twenty times the source's own rounding noise or a thousandth of the range, whichever is larger; and
if, where it generates, it writes the same tokens as its source, with and without a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from allheads import AllHeadsError, TwinBridge, convert, verify
from allheads_labs.kit.table import markdown
from allheads_labs.zoo import NotBuilt, Sample, build
from allheads_labs.zoo.inputs import WORDS
from allheads_labs.zoo.reading import CAPABILITIES, Reading, read

if TYPE_CHECKING:
    from allheads.verification.report import Report

#: What the twin may differ by, in units of the source's own noise, and of the range of its output.
NOISES, RANGE = 20.0, 1e-3
#: Tokens written by each model that can.
WRITTEN = 16


@dataclass(frozen=True)
class Row:
    """What became of one family. Figures of a family that was not converted are left at their defaults.

    ``tightness`` is the largest error of a layer in units of its bound, ``difference`` the largest of the output,
    ``allowed`` what it was held against, ``untouched`` what stays in the layers beside attention; ``reading`` what the
    toolkit says of the twin.
    """

    name: str
    outcome: Literal["converted", "refused", "not built", "differs"]
    reason: str = ""
    kind: str = ""
    banks: int = 0
    tightness: float = 0.0
    difference: float = 0.0
    allowed: float = 0.0
    noise: float | None = None
    generates: str = ""
    untouched: list[str] = field(default_factory=list)
    reading: Reading | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def survey(name: str, seed: int = 0) -> Row:
    """Build, convert and verify one family; every refusal becomes a row, and nothing else does.

    >>> survey("DreamModel").outcome
    'not built'
    """
    try:
        sample = build(name, seed=seed)
    except NotBuilt as error:
        return Row(name, "not built", error.reason)
    try:
        twin = convert(sample.bridge)
    except AllHeadsError as error:
        return Row(name, "refused", str(error))
    report = verify(sample.bridge, twin, sample.inputs)
    return _row(sample, twin, report, seed)


def _row(sample: Sample, twin: TwinBridge, report: Report, seed: int) -> Row:
    out = sample.run(sample.bridge)
    finite = out[out.isfinite()]
    allowed = max(NOISES * (report.noise_floor or 0.0), RANGE * float(finite.max() - finite.min()))
    wrong = [f"{p.location} is {p.tightness:.2g} times its bound" for p in report.layers if not p.passed]
    for what, difference in (("slots", report.max_logit_error), ("closed", report.max_logit_error_closed)):
        if not difference <= allowed:
            wrong.append(f"{what} is {difference:.1e} away, {allowed:.1e} allowed")
    generates = _generation(sample, twin)
    if generates == "differs":
        wrong.append("generation differs")
    return Row(
        name=sample.name,
        outcome="differs" if wrong else "converted",
        reason="; ".join(wrong),
        kind=_kind(twin),
        banks=len(twin.banks),
        tightness=max(p.tightness for p in report.layers),
        difference=max(report.max_logit_error, report.max_logit_error_closed),
        allowed=allowed,
        noise=report.noise_floor,
        generates=generates,
        untouched=list(twin.untouched),
        reading=read(sample.name, seed),
    )


def _kind(twin: TwinBridge) -> str:
    kinds = [
        f"{'experts, ' if layer.location.expert is not None else ''}{layer.bank.gates.activation.name}"
        f"{' gated' if layer.bank.gated else ''}"
        for layer in twin.layers
    ]
    return "; ".join(dict.fromkeys(kinds))


def _generation(sample: Sample, twin: TwinBridge) -> str:
    """Does the twin write what its source writes, greedily, with and without a cache?"""
    if not sample.generates:
        return ""
    written = [[_written(sample, model, use_cache) for use_cache in (True, False)] for model in (sample.bridge, twin)]
    return "same" if all(torch.equal(a, b) for a, b in zip(*written, strict=True)) else "differs"


def _written(sample: Sample, model: Any, use_cache: bool) -> torch.Tensor:
    given = {name: value for name, value in sample.inputs.items() if name != "decoder_input"}
    # Tokens that stand for images would ask for the images.
    special = list(range(WORDS[1], model.cfg.d_vocab))
    options = {"max_new_tokens": WRITTEN, "do_sample": False, "use_cache": use_cache, "suppress_tokens": special}
    with torch.no_grad():
        return model.original_model.generate(given.pop("input"), **given, **options)


def as_markdown(rows: list[Row]) -> str:
    """The table of all families, and what was not converted with its reason."""
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in ("converted", "refused", "not built")}
    figures: dict[str, Callable[[Row], str]] = {
        "family": lambda row: row.name,
        "heads for": lambda row: row.kind,
        "banks": lambda row: str(row.banks),
        "error / bound": lambda row: f"{row.tightness:.2f}",
        "output": lambda row: f"{row.difference:.0e}",
        "allowed": lambda row: f"{row.allowed:.0e}",
        "own noise": lambda row: "" if row.noise is None else f"{row.noise:.0e}",
        "generates": lambda row: row.generates,
        "stays in its layers": lambda row: ", ".join(row.untouched),
    }
    built = [[cell(row) for cell in figures.values()] for row in rows if row.outcome in ("converted", "differs")]
    others = [[row.name, row.outcome, row.reason] for row in rows if row.outcome != "converted"]
    return (
        "\n\n".join(
            [
                f"{counts['converted']} of {len(rows)} registered names are converted, {counts['refused']} refused, and"
                f" {counts['not built']} cannot be built here.",
                markdown(list(figures), built, right=list(figures)[2:7]),
                markdown(["family", "outcome", "reason"], others),
                *_reading([row.reading for row in rows if row.reading is not None]),
            ]
        )
        + "\n"
    )


def _reading(readings: list[Reading]) -> list[str]:
    """The table of what is read of each family, and the sentences that its numbers in brackets stand for."""
    sentences = list(dict.fromkeys(text for reading in readings for text in reading.refusals.values()))

    def cell(reading: Reading, capability: str) -> str:
        if capability in reading.refusals:
            return f"[{1 + sentences.index(reading.refusals[capability])}]"
        figure = reading.figures[capability]
        return f"{figure:.0f}" if figure == int(figure) and figure else f"{figure:.1g}"

    works = (f"`{name}` on {sum(name in reading.figures for reading in readings)}" for name in CAPABILITIES)
    cells = [[reading.name, *(cell(reading, name) for name in CAPABILITIES)] for reading in readings]
    return [
        f"Of {len(readings)} twins that are read: {', '.join(works)}.",
        markdown(["family", *CAPABILITIES], cells, right=list(CAPABILITIES)),
        "\n".join(f"{number}. {text}" for number, text in enumerate(sentences, 1)) or "Nothing is refused.",
    ]
