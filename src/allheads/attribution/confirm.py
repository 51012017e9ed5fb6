"""Proof by intervention: take each part away, in the frozen twin and in the live one, and compare with its effect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.freezing import freezing, live
from allheads.attribution.question import Question
from allheads.errors import AllHeadsError
from allheads.progress import bar
from allheads.result import Result
from allheads.twin.labels import Label
from allheads.twin.sites import Site, sites
from allheads.twin.twin import TwinBridge

if TYPE_CHECKING:
    import pandas

#: Logits that are computed at a time, and the change in the frozen network that is aimed at, in units of the target.
_ENTRIES, _CHANGE = 2**25, 10.0


#: A head or neuron, its position, and its predicted effect: what taking it away should take from the target.
Part = tuple[str, int, float]


@dataclass(frozen=True, repr=False)
class Confirmation(Result):
    """Effects as predicted, and as measured by writing zero instead, one part at a time; in units of the target.

    ``frozen`` is measured in the frozen twin (None for rules that do not freeze everything), ``live`` in the twin as it
    is.
    """

    names: list[str]
    predicted: Float[Tensor, " part"]
    frozen: Float[Tensor, " part"] | None
    live: Float[Tensor, " part"]

    @property
    def frozen_error(self) -> float:
        """The largest error of a prediction in the frozen twin, relative to the prediction; nan if it was not asked."""
        if self.frozen is None:
            return float("nan")
        return float(((self.frozen - self.predicted).abs() / self.predicted.abs().clamp_min(1e-300)).max())

    @property
    def correlation(self) -> float:
        """Pearson's r of live effects with predictions."""
        return float(torch.corrcoef(torch.stack([self.predicted, self.live]))[0, 1])

    @property
    def slope(self) -> float:
        """Least squares through 0: the live effect per unit of prediction; 1 is calibrated."""
        return float(self.predicted @ self.live / (self.predicted @ self.predicted))

    @property
    def signs(self) -> float:
        """The share of parts whose live effect has the sign that was predicted."""
        return float((self.predicted.sign() == self.live.sign()).double().mean())

    def facts(self) -> dict[str, Any]:
        """How well predictions hold, in the frozen twin and in the live one."""
        return {
            "parts": len(self.names),
            "frozen_error": self.frozen_error,
            "correlation": self.correlation,
            "slope": self.slope,
            "signs": self.signs,
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each part: name (``L3.A5@7``), predicted, frozen, live."""
        import pandas

        frozen = [float("nan")] * len(self.names) if self.frozen is None else self.frozen.tolist()
        columns = {
            "name": self.names,
            "predicted": self.predicted.tolist(),
            "frozen": frozen,
            "live": self.live.tolist(),
        }
        return pandas.DataFrame(columns)

    def __str__(self) -> str:
        frozen = "" if self.frozen is None else f"frozen twin: relative error at most {self.frozen_error:.1e}; "
        return (
            f"{len(self.names)} parts; {frozen}live twin: correlation {self.correlation:.2f}, "
            f"slope {self.slope:.2f}, {self.signs:.0%} of signs"
        )


def confirm(question: Question, parts: Sequence[Part], target_value: float) -> Confirmation:
    """Take away, one by one, what an attribution or a graph says has an effect.

    In the frozen twin the prediction is exact for changes of any size, so parts are changed enough to measure: by a
    multiple of what they write that moves the target by 10. Where the end of the network is curved (a cap), or the
    target is, it is exact up to there only. In the live twin parts write zero; patterns, gates and norms answer to
    that, and how well the prediction holds is the honest limit of the rule.

    Raises `AllHeadsError` if there are no parts, if the target is inside the network, or if the twin has changed since:
    its target is not ``target_value`` any more.
    """
    if question.metric.stream is not None:
        raise AllHeadsError("a target made of the logits", question.metric.name, "Confirm ah.attribute's results.")
    if not parts:
        raise AllHeadsError("a result with heads or neurons", "none", "Give the graph a larger budget.")
    with live(question.twin):
        return _confirmed(question, parts, target_value)


def _confirmed(question: Question, parts: Sequence[Part], target_value: float) -> Confirmation:
    now = float(_values(question)[0])
    if abs(now - target_value) > 1e-3 * max(1.0, abs(now)):
        raise AllHeadsError(
            f"a twin whose {question.metric.name} is {target_value:.4f}, as when it was asked",
            f"{now:.4f}",
            "It was edited, or has hooks: ask again.",
        )
    predicted = torch.tensor([effect for *_, effect in parts], dtype=torch.float64)
    factors = (_CHANGE / predicted.abs().clamp_min(1e-12)).clamp_min(1.0)
    after = None
    if question.rule.complete:
        with freezing(question.twin, question.rule):
            _values(question)
            after = _measured(question, parts, factors)
    names = [f"{label}@{position}" for label, position, _ in parts]
    return Confirmation(names, predicted, after, _measured(question, parts, torch.ones_like(factors)))


def _measured(question: Question, parts: Sequence[Part], factors: Tensor) -> Tensor:
    """What the target loses for each part when ``factor`` times what it writes is taken away, divided by ``factor``."""
    twin = question.twin
    with torch.no_grad():
        outputs = question.run()
    rows, whole = max(1, _ENTRIES // outputs.numel()), question.metric.of(outputs, {}).double().cpu()
    losses = []
    with bar("Interventions", total=len(parts)) as progress:
        for start in range(0, len(parts), rows):
            chunk, factor = parts[start : start + rows], factors[start : start + rows]
            with twin.hooks(fwd_hooks=list(_changes(twin, chunk, factor))):
                losses.append((whole - _values(question, len(chunk))) / factor)
            progress.update(len(chunk))
    return torch.cat(losses)


def _changes(twin: TwinBridge, parts: Sequence[Part], factors: Tensor) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Hooks under which each row has another part changed."""
    known = {site.name: site for site in sites(twin)}
    entries: dict[Site, list[tuple[int, int, int]]] = defaultdict(list)
    for row, (name, position, _) in enumerate(parts):
        label = Label.parse(name)
        site = known[f"{label.stem}.{label.kind}"]
        entries[site] += [(row, position, entry) for entry in site.entries(label.index)]
    for site, columns in entries.items():
        at = tuple(torch.tensor(column) for column in zip(*columns, strict=True))

        def change(value: Tensor, hook: object, at: tuple[Tensor, ...] = at, site: Site = site) -> Tensor:
            shape, value = value.shape, site.seen(value)
            # Some layers run all rows in one.
            value = value.clone().reshape(len(parts), -1, *value.shape[2:])
            factor = factors[at[0]].to(value)
            value[at] *= (1.0 - factor).reshape(-1, *[1] * (value.ndim - 3))
            return value.view(shape)

        yield site.point, change


def _values(question: Question, rows: int = 1) -> Tensor:
    with torch.no_grad():
        outputs = question.run(rows)
    return torch.stack([question.metric.of(row[None], {}) for row in outputs]).double().cpu()
