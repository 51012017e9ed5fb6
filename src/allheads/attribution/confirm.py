"""Proof by intervention: take each part away, in the held twin and in the live one, and compare with its effect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribution import Attribution
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.freezing import frozen
from allheads.attribution.metrics import Target, TargetLike, make_target, token_ids
from allheads.attribution.rules import rule_named
from allheads.errors import AllHeadsError
from allheads.progress import bar
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge, require_twin

if TYPE_CHECKING:
    import pandas

#: Logits that are held at a time, and the change in the held network that is aimed at, in units of the target.
_ENTRIES, _CHANGE = 2**25, 10.0


class Part(Protocol):
    """A head or neuron at a position, with a predicted effect."""

    @property
    def label(self) -> str:
        """As in `twin.heads`."""

    @property
    def position(self) -> int:
        """Where in the prompt."""

    @property
    def effect(self) -> float:
        """What taking it away should take from the target."""


@dataclass(frozen=True)
class Confirmation:
    """Effects as predicted, and as measured by writing zero instead, one part at a time; in units of the target.

    ``frozen`` is measured in the held twin (None for rules that do not hold everything), ``live`` in the twin as it is.
    """

    names: list[str]
    predicted: Float[Tensor, " part"]
    frozen: Float[Tensor, " part"] | None
    live: Float[Tensor, " part"]

    @property
    def frozen_error(self) -> float:
        """The largest error of a prediction in the held twin, relative to the prediction; nan if it was not asked."""
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

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each part: name, predicted, frozen, live."""
        import pandas

        held = [float("nan")] * len(self.names) if self.frozen is None else self.frozen.tolist()
        columns = {"name": self.names, "predicted": self.predicted.tolist(), "frozen": held, "live": self.live.tolist()}
        return pandas.DataFrame(columns)

    def __str__(self) -> str:
        held = "" if self.frozen is None else f"held twin: relative error at most {self.frozen_error:.1e}; "
        return (
            f"{len(self.names)} parts; {held}live twin: correlation {self.correlation:.2f}, "
            f"slope {self.slope:.2f}, {self.signs:.0%} of signs"
        )


def confirm(
    twin: TwinBridge, tokens: str | Tensor, target: TargetLike, found: Attribution | AttributionGraph, *, k: int = 100
) -> Confirmation:
    """Take away, one by one, what an attribution or a graph says has an effect.

    In the held twin the prediction is exact for changes of any size, so parts are changed enough to measure: by a
    multiple of what they write that moves the target by 10. In the live twin they write zero; patterns, gates and norms
    answer to that, and how well the prediction holds is the honest limit of the rule.

    Args:
        twin: that ``found`` was made from.
        tokens: the prompt that it was made from.
        target: what it was asked.
        found: its largest ``k`` parts are tried; of a graph, its nodes.
        k: how many.

    Raises:
        AllHeadsError: prompt or target are not those of ``found``, or it has no heads or neurons.

    >>> print(confirm(twin, prompt, pair, ah.graph(twin, prompt, pair)))  # doctest: +SKIP
    """
    ids, rule = token_ids(twin, tokens), rule_named(found.rule)
    parts: Sequence[Part] = found.parts[:k] if isinstance(found, AttributionGraph) else found.top(k)
    position = found.nodes[0].position if isinstance(found, AttributionGraph) else found.target.position
    asked = make_target(twin, target, min(position, ids.shape[1] - 1), ids.shape[1])
    own = float(_values(twin, ids, asked)[0])
    if abs(own - found.target_value) > 1e-3 * max(1.0, abs(own)) or position >= ids.shape[1]:
        raise AllHeadsError(
            f"the prompt and target of this result, at {found.target_value:.4f}",
            f"{asked.name} at {own:.4f}",
            "Pass what it was made from.",
        )
    if not parts:
        raise AllHeadsError("a result with heads or neurons", "none", "Give the graph a larger budget.")
    predicted = torch.tensor([part.effect for part in parts], dtype=torch.float64)
    factors = (_CHANGE / predicted.abs().clamp_min(1e-12)).clamp_min(1.0)
    held = None
    if rule.complete:
        with frozen(twin, ids, rule=rule):
            held = _measured(twin, ids, asked, parts, factors)
    live = _measured(twin, ids, asked, parts, torch.ones_like(factors))
    return Confirmation([f"{part.label}@{part.position}" for part in parts], predicted, held, live)


def _measured(twin: TwinBridge, ids: Tensor, asked: Target, parts: Sequence[Part], factors: Tensor) -> Tensor:
    """What the target loses for each part when ``factor`` times what it writes is taken away, divided by ``factor``."""
    rows = max(1, _ENTRIES // (ids.shape[1] * twin.cfg.d_vocab_out))
    own = _values(twin, ids, asked)[0]
    lost = []
    with bar("Interventions", total=len(parts)) as shown:
        for start in range(0, len(parts), rows):
            chunk, factor = parts[start : start + rows], factors[start : start + rows]
            with twin.hooks(fwd_hooks=list(_changes(twin, chunk, factor))):
                lost.append((own - _values(twin, ids.expand(len(chunk), -1), asked)) / factor)
            shown.update(len(chunk))
    return torch.cat(lost)


def _changes(twin: TwinBridge, parts: Sequence[Part], factors: Tensor) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Hooks under which each row has another part changed."""
    places: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for row, part in enumerate(parts):
        label = Label.parse(part.label)
        prefix = require_twin(twin).index.heads(label)[0].hook_prefix
        name = "hook_z" if label.kind == "A" else "hook_post"
        places[prefix + name].append((row, part.position, label.index))
    for name, found in places.items():
        at = tuple(torch.tensor(column) for column in zip(*found, strict=True))

        def change(value: Tensor, hook: object, at: tuple[Tensor, ...] = at) -> Tensor:
            value = value.clone()
            factor = factors[at[0]].to(value)
            value[at] *= (1.0 - factor).reshape(-1, *[1] * (value.ndim - 3))
            return value

        yield name, change


def _values(twin: TwinBridge, ids: Tensor, asked: Target) -> Tensor:
    with torch.no_grad():
        logits = twin(ids)
    return torch.stack([asked.of(row[None], {}) for row in logits]).double().cpu()
