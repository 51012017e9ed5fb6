"""Direct effects between parts: the held network, with everything that heads and neurons write cut from what they read.

The contribution of part j is ``c_j = G_j . a_j``. What it reads is linear in the parts before it,
``a_j = sum_i J_ji a_i + const``, with J along the stream only. The edge from i to j is ``G_j . J_ji a_i``, and with the
constant's share the edges into j sum to c_j. Where patterns are not held, queries and keys have edges of their own:
to first order the share of ``sum_s (dy/dscore_s) score_s``, to which queries and keys each sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribute import require_gradients
from allheads.attribution.constants import constants, only_biases_differ
from allheads.attribution.forward_cache import Run
from allheads.attribution.freezing import holding
from allheads.attribution.metrics import Target
from allheads.attribution.rules import Rule
from allheads.errors import AllHeadsError
from allheads.twin.twin import TwinBridge

#: Through values, or where patterns are not held also through queries and keys.
Side = Literal["V", "Q", "K"]
#: A head or neuron of a layer, and a position.
Place = tuple[int, int]

#: Entries of gradients that are held at a time.
_ENTRIES = 2**24


@dataclass(frozen=True)
class Incoming:
    """Edges into one part through one side: ``V``, or ``Q`` and ``K`` where patterns are not held.

    ``from`` positions that begin with ``first``: neurons read at one only.
    """

    side: Side
    total: float
    heads: Float[Tensor, "layer head from"]
    neurons: Float[Tensor, "layer from d_mlp"]
    embeddings: Float[Tensor, " from"]
    constants: float
    first: int = 0


@dataclass
class Edges:
    """A prompt's held network, ready to say what goes into any part: `edges` makes one."""

    rule: Rule
    cut: Run
    zero: Run
    gradients: dict[str, Tensor]
    value: Tensor
    #: What embeddings at each position and all constants contribute over all paths.
    embeddings: Float[Tensor, " pos"]
    constants: float

    def into_target(self) -> Incoming:
        """What is written straight into the target; its constants are what remains of it."""
        parts = self._parts(self.value, torch.ones_like(self.value)[None])
        heads, neurons, embeddings = (each[0] for each in parts)
        total = float(self.value.detach())
        rest = total - sum(float(each.sum()) for each in (heads, neurons, embeddings))
        return Incoming("V", total, heads, neurons, embeddings, rest)

    def into_heads(self, layer: int, places: Sequence[Place]) -> Iterator[tuple[Place, list[Incoming]]]:
        """Edges into heads ``(head, position)`` of a layer, side by side."""
        name = self.cut.heads[layer]
        read, gradient = self.cut.reads[name], self.gradients[name]
        sides: tuple[Side, ...] = ("V",) if self.rule.patterns else ("V", "Q", "K")
        tensors = [self.cut.seen[f"blocks.{layer}.attn.hook_{side.lower()}"] for side in sides]
        zeros = [self.zero.seen[f"blocks.{layer}.attn.hook_{side.lower()}"] for side in sides]
        for chunk in _chunks(places, self._rows):
            seeds = torch.zeros(len(chunk), *read.shape, dtype=read.dtype, device=read.device)
            for row, (head, position) in enumerate(chunk):
                seeds[row, 0, position, head] = gradient[0, position, head]
            backs = torch.autograd.grad(read, tensors, seeds, is_grads_batched=True, retain_graph=True)
            found = [self._sums(*each) for each in zip(sides, tensors, backs, zeros, strict=True)]
            yield from ((place, [side[row] for side in found]) for row, place in enumerate(chunk))

    def into_neurons(self, layer: int, places: Sequence[Place]) -> Iterator[tuple[Place, list[Incoming]]]:
        """Edges into neurons ``(neuron, position)`` of a layer. Neurons at several positions share a row."""
        name = self.cut.neurons[layer]
        read, gradient, zero = self.cut.reads[name], self.gradients[name], self.zero.reads[name]
        for chunk in _rows_of_positions(places, self._rows):
            seeds = torch.zeros(len(chunk), *read.shape, dtype=read.dtype, device=read.device)
            for row, members in enumerate(chunk):
                for neuron, position in members:
                    seeds[row, 0, position, neuron] = gradient[0, position, neuron]
            heads, neurons, embeddings = self._parts(read, seeds)
            for row, members in enumerate(chunk):
                for neuron, position in members:
                    at, worth = slice(position, position + 1), gradient[0, position, neuron]
                    total, constant = (float(worth * each[0, position, neuron].detach()) for each in (read, zero))
                    here = (heads[row, ..., at], neurons[row, :, at], embeddings[row, at])
                    yield (neuron, position), [Incoming("V", total, *here, constant, position)]

    @property
    def _rows(self) -> int:
        return max(1, _ENTRIES // sum(self.cut.leaves[name].numel() for name in self.cut.neurons))

    def _sums(self, side: Side, tensor: Tensor, back: Tensor, zero: Tensor) -> list[Incoming]:
        heads, neurons, embeddings = self._parts(tensor, back)
        totals, constants = ((back * each.detach()).flatten(1).sum(1).tolist() for each in (tensor, zero))
        rows = zip(totals, heads, neurons, embeddings, constants, strict=True)
        return [Incoming(side, *row) for row in rows]

    def _parts(self, read: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``seeds . J_i a_i`` for each row of seeds and every head, neuron and embedding i at each position."""
        cut = self.cut
        names = [*cut.heads, *cut.neurons, *cut.embeddings]
        grads = torch.autograd.grad(
            read,
            [cut.leaves[name] for name in names],
            seeds,
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        parts = [
            cut.leaves[name].detach().new_zeros(len(seeds), *cut.leaves[name].shape[1:])
            if grad is None
            else grad[:, 0] * cut.leaves[name].detach()[0]
            for name, grad in zip(names, grads, strict=True)
        ]
        layers = len(cut.layers)
        heads = torch.stack([part.sum(-1).transpose(1, 2) for part in parts[:layers]], 1)
        neurons = torch.stack(parts[layers : 2 * layers], 1)
        return heads, neurons, torch.stack([part.sum(-1) for part in parts[2 * layers :]]).sum(0)


@contextmanager
def edges(twin: TwinBridge, ids: Tensor, asked: Target, rule: Rule) -> Iterator[Edges]:
    """Run the network as it is, cut, and cut with nothing in it: what it then reads are the constants.

    Raises `AllHeadsError` for a rule that does not hold norms and gates.
    """
    require_gradients()
    if not (rule.norms and rule.gates):
        raise AllHeadsError("a rule that holds norms and gates", repr(rule.name), "Use frozen, half, live or relp.")
    sides = tuple(f"blocks.{layer}.attn.hook_{side}" for layer in range(len(twin.banks)) for side in "qkv")
    with torch.enable_grad(), only_biases_differ(twin), holding(twin, rule) as held:
        whole = Run(twin)
        with whole.watching():
            value = asked.of(twin(ids), whole.seen)
        tensors = {name: whole.seen[name] for name in (*whole.heads, *whole.neurons, *whole.embeddings)}
        tensors |= {name: tensor for name, (_, tensor) in constants(held).items()}
        grads = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(tensor) if grad is None else grad
            for (name, tensor), grad in zip(tensors.items(), grads, strict=True)
        }
        effects = {name: (gradients[name] * tensor).detach() for name, tensor in tensors.items()}
        zero = Run(twin, sides, cut=True, empty=True)
        with torch.no_grad(), zero.watching():
            twin(ids)
        cut = Run(twin, sides, cut=True)
        with cut.watching():
            value = asked.of(twin(ids), cut.seen)
        begun = torch.stack([effects[name][0].sum(-1) for name in whole.embeddings]).sum(0)
        fixed = sum(float(effects[name].sum()) for name in constants(held))
        yield Edges(rule, cut, zero, gradients, value, begun, fixed)


def _chunks(places: Sequence[Place], rows: int) -> Iterator[Sequence[Place]]:
    return (places[start : start + rows] for start in range(0, len(places), rows))


def _rows_of_positions(places: Sequence[Place], rows: int) -> Iterator[list[list[Place]]]:
    """Rows of neurons at different positions, some rows at a time."""
    found: list[list[Place]] = []
    filled: dict[int, int] = {}
    for neuron, position in places:
        row = filled[position] = filled.get(position, -1) + 1
        if row == len(found):
            found.append([])
        found[row].append((neuron, position))
    return (found[start : start + rows] for start in range(0, len(found), rows))
