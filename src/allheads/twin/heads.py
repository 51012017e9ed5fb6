"""All heads of a twin, ordinary ones and neurons', found by label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.models.attention import AttentionLayer
from allheads.models.locations import Location
from allheads.twin.labels import Label

if TYPE_CHECKING:
    from allheads.twin.twin import Layer


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
    def of_neuron(self) -> bool:
        """Is it a neuron's?"""
        return isinstance(self.module, HeadBank)

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


@dataclass(frozen=True)
class HeadIndex:
    """The attention layers and banks of a twin, by the beginnings of labels; heads are made when they are asked for."""

    attention: dict[tuple[str, str], AttentionLayer]
    neurons: dict[str, Layer]

    @classmethod
    def of(cls, attention: Sequence[AttentionLayer], layers: Sequence[Layer]) -> HeadIndex:
        """The index of a twin."""
        return cls(
            {(layer.location.stem, layer.kind): layer for layer in attention},
            {layer.location.stem: layer for layer in layers},
        )

    def __iter__(self) -> Iterator[Head]:
        """Every head, layer by layer."""
        ordinary, of_neurons = self.attention.values(), self.neurons.values()
        locations = [layer.location for layer in ordinary] + [layer.location for layer in of_neurons]
        for stack, number in dict.fromkeys((location.stack, location.layer) for location in locations):
            for attention in ordinary:
                if (attention.location.stack, attention.location.layer) == (stack, number):
                    yield from _ordinary(attention)
            for layer in of_neurons:
                if (layer.location.stack, layer.location.layer) == (stack, number):
                    for neuron in range(layer.bank.d_mlp):
                        yield from _of_neuron(layer, neuron)

    def ordinary(self) -> Iterator[Head]:
        """The ordinary heads alone."""
        for attention in self.attention.values():
            yield from _ordinary(attention)

    def location(self, label: Label) -> Location:
        """Where the sublayer of a label is. Raises `AllHeadsError` for one that this twin does not have."""
        layer = self.neurons.get(label.stem) if label.kind == "N" else self.attention.get((label.stem, label.kind))
        if layer is None:
            raise self._outside(label)
        return layer.location

    def head(self, label: str | Label) -> Head:
        """One head; see `TwinBridge.head`."""
        wanted = Label.of(label)
        if wanted.kind == "N":
            heads = self.neuron(wanted.neuron)
            if wanted.part is None:
                raise AllHeadsError(
                    f"one head, such as {wanted}.0", f"{wanted}, a neuron of {len(heads)}", "Or use twin.neuron."
                )
            if wanted.part >= len(heads):
                raise self._outside(wanted)
            return heads[wanted.part]
        attention = self.attention.get((wanted.stem, wanted.kind))
        if attention is None or wanted.index >= attention.n_heads:
            raise self._outside(wanted)
        return _ordinary(attention)[wanted.index]

    def neuron(self, label: str | Label) -> list[Head]:
        """All heads of a neuron; see `TwinBridge.neuron`."""
        wanted = Label.of(label)
        if wanted.kind != "N" or wanted.part is not None:
            raise AllHeadsError("a whole neuron, such as L3.N812", str(wanted), "Use twin.head for one head.")
        layer = self.neurons.get(wanted.stem)
        if layer is None or wanted.index >= layer.bank.d_mlp:
            raise self._outside(wanted)
        return _of_neuron(layer, wanted.index)

    def heads(self, label: str | Label) -> list[Head]:
        """The heads that a label names: one, or all of a neuron's."""
        wanted = Label.of(label)
        return self.neuron(wanted) if wanted.kind == "N" and wanted.part is None else [self.head(wanted)]

    def _outside(self, wanted: Label) -> AllHeadsError:
        if wanted.kind == "N":
            banks = {stem: layer.bank for stem, layer in self.neurons.items()}
            lasts = [f"{stem}.N{bank.d_mlp - 1}.{bank.gates.heads - 1}" for stem, bank in banks.items()]
        else:
            lasts = [f"{stem}.{kind}{layer.n_heads - 1}" for (stem, kind), layer in self.attention.items()]
        some = ", ".join(lasts if len(lasts) < 5 else [*lasts[:2], "...", lasts[-1]])
        return AllHeadsError(
            f"a head of this twin, up to {some}", str(wanted), "Layers count from 0; see twin.heads() for all labels."
        )


def _ordinary(attention: AttentionLayer) -> list[Head]:
    stem, prefix = attention.location.stem, attention.location.prefix
    return [
        Head(Label(stem, attention.kind, number), number, attention.module, prefix)
        for number in range(attention.n_heads)
    ]


def _of_neuron(layer: Layer, neuron: int) -> list[Head]:
    location, bank = layer.location, layer.bank
    return [
        Head(Label(location.stem, "N", neuron, part), part * bank.d_mlp + neuron, bank, location.prefix)
        for part in range(bank.gates.heads)
    ]
