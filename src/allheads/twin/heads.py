"""All heads of a twin, ordinary ones and neurons', under one roof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from allheads.banks.bank import HeadBank
from allheads.errors import AllHeadsError
from allheads.models.bridge import TwinBridge
from allheads.twin.labels import Label


@dataclass(frozen=True)
class Head:
    """One head: its label, its number among the heads of its module, and its weights on request."""

    label: Label
    number: int
    module: Any

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

    @property
    def hook_prefix(self) -> str:
        """Where its hook points are: ``hook_prefix + "hook_pattern"`` and so on."""
        return f"blocks.{self.label.layer}.{'attn' if self.label.kind == 'A' else 'mlp'}."

    def __str__(self) -> str:
        return str(self.label)


def heads(twin: TwinBridge) -> Iterator[Head]:
    """Every head of the twin, layer by layer: the ordinary ones, then those of the neurons.

    A neuron's heads follow each other: ``L0.N0.0, L0.N0.1, L0.N1.0, ...``.
    """
    if not isinstance(twin, TwinBridge):
        raise AllHeadsError("an attention-only twin", type(twin).__name__, "Make one with ah.convert(source).")
    for layer, block in enumerate(twin.blocks):
        for index in range(twin.cfg.n_heads):
            yield Head(Label(layer, "A", index), index, block.attn)
        bank = twin.banks[layer]
        for neuron in range(bank.d_mlp):
            for part in range(bank.gates.heads):
                yield Head(Label(layer, "N", neuron, part), part * bank.d_mlp + neuron, bank)


def head(twin: TwinBridge, label: str | Label) -> list[Head]:
    """The heads a label names: one, or all of a neuron's.

    Raises `AllHeadsError` for a label that is malformed or points outside the twin.
    """
    wanted = Label.parse(label) if isinstance(label, str) else label
    if not wanted.layer < len(twin.blocks):
        raise AllHeadsError(f"a layer below {len(twin.blocks)}", str(wanted), "Layers count from 0.")
    bank = twin.banks[wanted.layer]
    limit = twin.cfg.n_heads if wanted.kind == "A" else bank.d_mlp
    if not wanted.index < limit or not (wanted.part or 0) < bank.gates.heads:
        what = "an ordinary head" if wanted.kind == "A" else f"a neuron with {bank.gates.heads} heads each,"
        raise AllHeadsError(f"{what} below {limit}", str(wanted), "See ah.heads(twin) for all labels.")
    if wanted.kind == "A":
        return [Head(wanted, wanted.index, twin.blocks[wanted.layer].attn)]
    parts = range(bank.gates.heads) if wanted.part is None else [wanted.part]
    return [
        Head(Label(wanted.layer, "N", wanted.index, part), part * bank.d_mlp + wanted.index, bank) for part in parts
    ]
