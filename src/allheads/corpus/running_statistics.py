"""Sums over positions of a corpus: what is kept of a sweep, in memory that does not grow with it.

Statistics of two parts add up to those of both. Counts, extremes and examples do so exactly, in any order; sums are in
float64 and may differ in their last bits. `allheads.corpus.run_sweep` therefore always adds the same parts in the same
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.corpus.activation_bins import BINS
from allheads.corpus.head_roles import ROLES

#: Each of the most frequent tokens is a group of its own; the others share as many groups by their ids' remainder.
FREQUENT = 128
#: Positions in a window are groups of their own up to this many, and neighbours share a group beyond.
POSITIONS = 128
#: Examples that are kept of every neuron, each from another window, and tokens shown of each: so many before the one
#: where it is largest, that one, and some behind.
EXAMPLES, BEFORE, SHOWN = 5, 15, 24


@dataclass
class RunningStatistics:
    """Sums over all positions but the first of each window.

    An empty example has the text -1, and a token that its window does not have the id -1. The first position of a
    window is shown in examples, but does not count: its activation is 0 there. For ``histogram`` see
    `allheads.corpus.activation_bins`.

    ``chosen`` is how often a router has chosen the expert whose neurons a sublayer is: everywhere, outside of mixtures.
    ``attention`` has a row for each of `ROLES`, over ``destinations``; the last is the entropy of patterns in nats.
    """

    open: Int[Tensor, " neuron"]
    chosen: Int[Tensor, "group sublayer"]
    squares: Float[Tensor, " neuron"]
    token_counts: Int[Tensor, " group"]
    token_sums: Float[Tensor, "group neuron"]
    position_counts: Int[Tensor, " position"]
    position_sums: Float[Tensor, "position neuron"]
    lowest: Float[Tensor, " neuron"]
    highest: Float[Tensor, " neuron"]
    histogram: Int[Tensor, "neuron bin"]
    example_values: Float[Tensor, "neuron example"]
    example_texts: Int[Tensor, "neuron example"]
    example_offsets: Int[Tensor, "neuron example"]
    example_tokens: Int[Tensor, "neuron example shown"]
    example_activations: Float[Tensor, "neuron example shown"]
    destinations: Int[Tensor, " role"]
    attention: Float[Tensor, "role head"]

    @classmethod
    def empty(cls, widths: Sequence[int], heads: int, device: str | torch.device = "cpu") -> RunningStatistics:
        """Nothing seen yet, of sublayers with so many neurons."""
        neurons = sum(widths)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        def whole(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int64, device=device)

        return cls(
            open=whole(neurons),
            chosen=whole(2 * FREQUENT, len(widths)),
            squares=zeros(neurons),
            token_counts=whole(2 * FREQUENT),
            token_sums=zeros(2 * FREQUENT, neurons),
            position_counts=whole(POSITIONS),
            position_sums=zeros(POSITIONS, neurons),
            lowest=zeros(neurons) + torch.inf,
            highest=zeros(neurons) - torch.inf,
            histogram=whole(neurons, BINS),
            example_values=zeros(neurons, EXAMPLES),
            example_texts=whole(neurons, EXAMPLES, fill=-1),
            example_offsets=whole(neurons, EXAMPLES, fill=-1),
            example_tokens=whole(neurons, EXAMPLES, SHOWN, fill=-1).int(),
            example_activations=zeros(neurons, EXAMPLES, SHOWN).float(),
            destinations=whole(len(ROLES) + 1),
            attention=zeros(len(ROLES) + 1, heads),
        )

    def to(self, device: str | torch.device) -> RunningStatistics:
        """The same on a device."""
        return RunningStatistics(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def add(self, other: RunningStatistics) -> None:
        """Count in what others have seen."""
        torch.minimum(self.lowest, other.lowest, out=self.lowest)
        torch.maximum(self.highest, other.highest, out=self.highest)
        for name, mine in self.tensors().items():
            if not name.startswith(("example", "lowest", "highest")):
                mine += getattr(other, name)
        values, texts, offsets, tokens, activations = other.examples
        self.offer(slice(None), (values, texts, offsets), lambda *which: (tokens[which], activations[which]))

    def offer(
        self,
        neurons: slice,
        found: tuple[Tensor, Tensor, Tensor],
        shown: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        """Keep the largest activations of these neurons, by size; of equal ones the first in the corpus.

        ``found`` are values, texts and offsets of some examples of each neuron. ``shown`` gives the tokens and the
        activations of those that are kept, by neuron and by number: few are, once many have been seen.
        """
        ranked = (self.example_values, self.example_texts, self.example_offsets)
        both = [torch.cat([mine[neurons], new], 1) for mine, new in zip(ranked, found, strict=True)]
        order = _ranked(*both)[:, :EXAMPLES]
        for mine, candidates in zip(ranked, both, strict=True):
            mine[neurons] = candidates.take_along_dim(order, 1)
        neuron, place = ((order >= EXAMPLES) & (self.example_texts[neurons] >= 0)).nonzero(as_tuple=True)
        news = shown(neuron, order[neuron, place] - EXAMPLES)
        stays = order.clamp(max=EXAMPLES - 1)[..., None]
        for mine, new in zip((self.example_tokens, self.example_activations), news, strict=True):
            kept = mine[neurons].take_along_dim(stays, 1)
            kept[neuron, place] = new
            mine[neurons] = kept

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """Values, texts, offsets, tokens and activations of the examples, ``[neuron example]``."""
        return tuple(tensor for name, tensor in self.tensors().items() if name.startswith("example"))

    @property
    def positions(self) -> int:
        """How many positions were seen."""
        return int(self.token_counts.sum())


def _ranked(values: Tensor, texts: Tensor, offsets: Tensor) -> Int[Tensor, "neuron candidate"]:
    in_order = (texts * 2**32 + offsets).argsort(1)
    size = values.abs().masked_fill(texts < 0, -1.0).take_along_dim(in_order, 1)
    return in_order.take_along_dim(size.argsort(dim=1, descending=True, stable=True), 1)


def token_groups(counts: Int[Tensor, " d_vocab"]) -> Int[Tensor, " d_vocab"]:
    """The group of every token: the most frequent ones alone, the others by their remainder.

    >>> token_groups(torch.tensor([1, 5, 0, 7]))[[3, 1]].tolist()
    [0, 1]
    """
    ids = torch.arange(len(counts))
    groups = FREQUENT + ids % FREQUENT
    frequent = counts.argsort(descending=True, stable=True)[:FREQUENT]
    groups[frequent] = torch.arange(len(frequent))
    return groups


def position_groups(context: int) -> Int[Tensor, " context"]:
    """The group of every position of a window.

    >>> position_groups(1000)[[0, 7, 8, 999]].tolist()
    [0, 0, 1, 127]
    """
    return torch.arange(context) * POSITIONS // max(POSITIONS, context)
