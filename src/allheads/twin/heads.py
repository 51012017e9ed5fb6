"""All heads of a twin, ordinary ones and neurons', under one roof."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.models.attention import Attending, attending
from allheads.models.bridge import TwinBridge
from allheads.models.locations import Place
from allheads.twin.labels import Label


@dataclass(frozen=True)
class Head:
    """One head: its label, its number among the heads of its module, and its weights on request.

    Its hook points are at ``hook_prefix + "hook_pattern"`` and so on.
    """

    label: Label
    number: int
    module: Any
    hook_prefix: str

    @property
    def W_Q(self) -> Float[Tensor, "d_model d_head"]:
        """Query weights; ``W_K``, ``W_V`` likewise, ``W_O`` is ``[d_head d_model]``."""
        return self._weight("W_Q")

    @property
    def W_K(self) -> Float[Tensor, "d_model d_head"]:
        """Key weights. With grouped queries, those of the group the head belongs to."""
        return self._weight("W_K")

    @property
    def W_V(self) -> Float[Tensor, "d_model d_head"]:
        """Value weights. With grouped queries, those of the group the head belongs to."""
        return self._weight("W_V")

    @property
    def W_O(self) -> Float[Tensor, "d_head d_model"]:
        """Output weights."""
        return self._weight("W_O")

    def _weight(self, name: str) -> Tensor:
        if isinstance(self.module, HeadBank):
            return self.module.head(self.number)[name]
        weight = getattr(self.module, name)
        return weight[self.number // (self.module.W_Q.shape[0] // weight.shape[0])]

    def __str__(self) -> str:
        return str(self.label)


def heads(twin: TwinBridge) -> Iterator[Head]:
    """Every head of the twin, layer by layer: the ordinary ones, then those of the neurons.

    A neuron's heads follow each other: ``L0.N0.0, L0.N0.1, L0.N1.0, ...``.
    """
    ordinary, banks = _layers(twin)
    for key in dict.fromkeys([*ordinary, *banks]):
        for component in ordinary.get(key, []):
            for index in range(component.n_heads):
                yield _ordinary(component, index)
        for place, bank in banks.get(key, []):
            for neuron in range(bank.d_mlp):
                for part in range(bank.gates.heads):
                    yield _of_neuron(place, bank, neuron, part)


def head(twin: TwinBridge, label: str | Label) -> list[Head]:
    """The heads a label names: one, or all of a neuron's.

    Raises `AllHeadsError` for a label that is malformed or points outside the twin.
    """
    return named_heads(twin, [label])


def named_heads(twin: TwinBridge, labels: Iterable[str | Label]) -> list[Head]:
    """`head` for many labels, one after the other."""
    ordinary, banks = _layers(twin)
    components = [each for found in ordinary.values() for each in found]
    placed = {place.stem: (place, bank) for found in banks.values() for place, bank in found}
    chosen: list[Head] = []
    for label in labels:
        wanted = Label.parse(label) if isinstance(label, str) else label
        chosen += _neurons_heads(wanted, placed) if wanted.kind == "N" else [_component_head(wanted, components)]
    return chosen


def _component_head(wanted: Label, components: list[Attending]) -> Head:
    found = next((each for each in components if (each.place.stem, each.kind) == (wanted.stem, wanted.kind)), None)
    if found is None or not wanted.index < found.n_heads:
        raise _outside(wanted, [f"{each.place.stem}.{each.kind}{each.n_heads - 1}" for each in components])
    return _ordinary(found, wanted.index)


def _neurons_heads(wanted: Label, placed: dict[str, tuple[Place, HeadBank]]) -> list[Head]:
    place, bank = placed.get(wanted.stem, (None, None))
    if place is None or bank is None or not wanted.index < bank.d_mlp or not (wanted.part or 0) < bank.gates.heads:
        lasts = [f"{stem}.N{each.d_mlp - 1}.{each.gates.heads - 1}" for stem, (_, each) in placed.items()]
        raise _outside(wanted, lasts)
    parts = range(bank.gates.heads) if wanted.part is None else [wanted.part]
    return [_of_neuron(place, bank, wanted.index, part) for part in parts]


def _layers(
    twin: TwinBridge,
) -> tuple[dict[tuple[str, int], list[Attending]], dict[tuple[str, int], list[tuple[Place, HeadBank]]]]:
    """Attention components and banks by stack and layer."""
    if not isinstance(twin, TwinBridge):
        raise AllHeadsError("an attention-only twin", type(twin).__name__, "Make one with ah.convert(source).")
    ordinary: dict[tuple[str, int], list[Attending]] = {}
    banks: dict[tuple[str, int], list[tuple[Place, HeadBank]]] = {}
    for component in attending(twin):
        ordinary.setdefault((component.place.stack, component.place.layer), []).append(component)
    for place, bank in zip(twin.places, twin.banks, strict=True):
        banks.setdefault((place.stack, place.layer), []).append((place, bank))
    return ordinary, banks


def _ordinary(component: Attending, index: int) -> Head:
    label = Label(component.place.stem, component.kind, index)
    return Head(label, index, component.module, component.place.prefix)


def _of_neuron(place: Place, bank: HeadBank, neuron: int, part: int) -> Head:
    return Head(Label(place.stem, "N", neuron, part), part * bank.d_mlp + neuron, bank, place.prefix)


def _outside(wanted: Label, lasts: list[str]) -> AllHeadsError:
    some = ", ".join(lasts if len(lasts) < 5 else [*lasts[:2], "...", lasts[-1]])
    return AllHeadsError(
        f"a head of this twin, up to {some}", str(wanted), "Layers count from 0; see ah.heads(twin) for all labels."
    )
