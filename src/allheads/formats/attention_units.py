"""The heads or neurons of a HeadVis tree, and their attention while the twin runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.corpus.count_batch import Countable, shown_at
from allheads.corpus.token_windows import Batch
from allheads.errors import AllHeadsError
from allheads.gates.gates import Gate
from allheads.gates.opening import gate_part
from allheads.twin.labels import Label
from allheads.twin.sites import Site, prompts_apart


@dataclass(frozen=True)
class Group:
    """Those of one sublayer: which of it they are, and which of all. ``gate`` makes openness of preactivations."""

    point: str
    index: list[int]
    rows: slice
    gate: Gate | None

    def attention(self, value: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch unit ..."]:
        """Patterns ``[batch head query key]`` of what passes the point, or openness ``[batch neuron query]``."""
        if self.gate is None:
            return value[:, self.index]
        return self.gate(value[..., self.index].float()).mT


@dataclass(frozen=True)
class Units:
    """Heads, or neurons, of a twin, in the order in which it runs them."""

    countable: Countable
    labels: list[Label]
    groups: list[Group]

    @property
    def neurons(self) -> bool:
        """Are they neurons?"""
        return self.labels[0].kind == "N"

    @classmethod
    def of(cls, countable: Countable, labels: Iterable[str | Label] | None) -> Units:
        """Those of these labels, or all ordinary heads.

        Raises `AllHeadsError` for unknown labels, heads beside neurons, neurons of experts, two with the same number.
        """
        chosen = _chosen(countable, labels)
        groups, ordered = [], list[Label]()
        for site, index in _by_site(countable, chosen):
            rows = slice(len(ordered), len(ordered) + len(index))
            groups.append(_group(countable, site, index, rows))
            ordered += [site.label(number) for number in index]
        _require_numbers(ordered)
        return cls(countable, ordered, groups)

    def watch(self, batch: Batch, look: Callable[[Group, Tensor], None]) -> None:
        """Run the twin on a batch, and look at the attention of each group."""
        twin = self.countable.twin

        def seen(group: Group, value: Tensor, hook: object) -> None:
            look(group, group.attention(apart(value)))

        hooks: Any = [(group.point, partial(seen, group)) for group in self.groups]
        with torch.no_grad(), prompts_apart(twin) as apart, twin.hooks(fwd_hooks=hooks):
            self.countable.run_batch(batch)


def _chosen(countable: Countable, labels: Iterable[str | Label] | None) -> set[Label]:
    if labels is None:
        return {site.label(head) for site in countable.heads for head in range(site.count)}
    wanted = {Label.of(label) for label in ([labels] if isinstance(labels, (str, Label)) else labels)}
    if not wanted:
        raise AllHeadsError("at least one head or neuron", "no labels", "Leave labels out for all ordinary heads.")
    kinds = {label.kind == "N" for label in wanted}
    if len(kinds) > 1:
        raise AllHeadsError("heads, or neurons", "both", "Write a folder for each: files are named by layer and index.")
    for label in wanted:
        countable.twin.index.heads(label)
        if label.part is not None:
            raise AllHeadsError("ordinary heads or whole neurons", str(label), f"Name {label.neuron}.")
    return wanted


def _by_site(countable: Countable, chosen: set[Label]) -> Iterator[tuple[Site, list[int]]]:
    """Raises `AllHeadsError` for what shows nothing on text, and for experts."""
    found: dict[Site, list[int]] = defaultdict(list)
    known = {site.name: site for site in (*countable.heads, *countable.neurons)}
    for label in sorted(chosen, key=lambda label: label.index):
        site = known.get(f"{label.stem}.{label.kind}")
        if site is None or site.location.expert is not None:
            raise AllHeadsError(
                "heads and neurons that look at every token", f"{label}, which does not", "Name others."
            )
        found[site].append(label.index)
    return ((site, found[site]) for site in known.values() if site in found)


def _group(countable: Countable, site: Site, index: list[int], rows: slice) -> Group:
    if site.kind != "N":
        return Group(shown_at(site), index, rows, None)
    gates = next(layer.bank.gates for layer in countable.twin.layers if layer.location == site.location)
    return Group(f"{site.location.prefix}hook_pre", index, rows, gates.gates[gate_part(gates)])


def _require_numbers(labels: list[Label]) -> None:
    seen: dict[tuple[int, int], Label] = {}
    for label in labels:
        known = seen.setdefault((label.layer, label.index), label)
        if known != label:
            both = f"{known} and {label}, both L{label.layer}H{label.index}"
            raise AllHeadsError("parts with names of their own", both, "Name the labels of one stack.")
