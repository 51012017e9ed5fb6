"""Direct effects between parts: the frozen network, with what heads and neurons write cut from what they read.

The contribution of part j is ``c_j = G_j . a_j``. What it reads is linear in the parts before it,
``a_j = sum_i J_ji a_i + const``, with J along the stream only. The edge from i to j is ``G_j . J_ji a_i``, and with the
constant's share the edges into j sum to c_j. Where patterns are not frozen, queries and keys have edges of their own:
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

from allheads.attribution.constants import constants
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable
from allheads.attribution.question import Question
from allheads.errors import AllHeadsError

#: Through values, or where patterns are not frozen also through queries and keys.
Side = Literal["V", "Q", "K"]
#: The number of a head or neuron in its layer, and a position.
Entry = tuple[int, int]

#: Entries of gradients that are kept at a time.
_ENTRIES = 2**24


@dataclass(frozen=True)
class IncomingEdges:
    """Edges into one part through one side: ``V``, or ``Q`` and ``K`` where patterns are not frozen.

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
    """A prompt's frozen network, ready to say what goes into any part: `edges` makes one."""

    question: Question
    cut: ForwardCache
    zero: ForwardCache
    gradients: dict[str, Tensor]
    value: Tensor
    #: What embeddings at each position and all constants contribute over all paths.
    embeddings: Float[Tensor, " pos"]
    constants: float

    def into_target(self) -> IncomingEdges:
        """What is written straight into the target; its constants are what remains of it."""
        parts = self._parts(self.value, torch.ones_like(self.value)[None])
        heads, neurons, embeddings = (part[0] for part in parts)
        total = float(self.value.detach())
        rest = total - sum(float(part.sum()) for part in (heads, neurons, embeddings))
        return IncomingEdges("V", total, heads, neurons, embeddings, rest)

    def into_heads(self, layer: int, entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[IncomingEdges]]]:
        """Edges into heads ``(head, position)`` of a layer, side by side."""
        name = self.cut.heads[layer]
        read, gradient = self.cut.uncut[name], self.gradients[name]
        sides: tuple[Side, ...] = ("V",) if self.question.rule.patterns else ("V", "Q", "K")
        tensors = [self.cut.activations[f"blocks.{layer}.attn.hook_{side.lower()}"] for side in sides]
        zeros = [self.zero.activations[f"blocks.{layer}.attn.hook_{side.lower()}"] for side in sides]
        for chunk in _chunks(entries, self._rows):
            seeds = torch.zeros(len(chunk), *read.shape, dtype=read.dtype, device=read.device)
            for row, (head, position) in enumerate(chunk):
                seeds[row, 0, position, head] = gradient[0, position, head]
            backs = torch.autograd.grad(read, tensors, seeds, is_grads_batched=True, retain_graph=True)
            flows = [self._sums(*side) for side in zip(sides, tensors, backs, zeros, strict=True)]
            yield from ((entry, [side[row] for side in flows]) for row, entry in enumerate(chunk))

    def into_neurons(self, layer: int, entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[IncomingEdges]]]:
        """Edges into neurons ``(neuron, position)`` of a layer. Neurons at several positions share a row."""
        name = self.cut.neurons[layer]
        read, gradient, zero = self.cut.uncut[name], self.gradients[name], self.zero.uncut[name]
        for chunk in _rows_of_positions(entries, self._rows):
            seeds = torch.zeros(len(chunk), *read.shape, dtype=read.dtype, device=read.device)
            for row, members in enumerate(chunk):
                for neuron, position in members:
                    seeds[row, 0, position, neuron] = gradient[0, position, neuron]
            heads, neurons, embeddings = self._parts(read, seeds)
            for row, members in enumerate(chunk):
                for neuron, position in members:
                    at, slope = slice(position, position + 1), gradient[0, position, neuron]
                    total, constant = (float(slope * value[0, position, neuron].detach()) for value in (read, zero))
                    here = (heads[row, ..., at], neurons[row, :, at], embeddings[row, at])
                    yield (neuron, position), [IncomingEdges("V", total, *here, constant, position)]

    @property
    def _rows(self) -> int:
        return max(1, _ENTRIES // sum(self.cut.leaves[name].numel() for name in self.cut.neurons))

    def _sums(self, side: Side, tensor: Tensor, back: Tensor, zero: Tensor) -> list[IncomingEdges]:
        heads, neurons, embeddings = self._parts(tensor, back)
        totals, constants = ((back * read.detach()).flatten(1).sum(1).tolist() for read in (tensor, zero))
        rows = zip(totals, heads, neurons, embeddings, constants, strict=True)
        return [IncomingEdges(side, *row) for row in rows]

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
def edges(question: Question) -> Iterator[Edges]:
    """Run the network as it is, cut, and cut with nothing in it: what it then reads are the constants.

    Raises `AllHeadsError` for a rule that does not freeze norms and gates.
    """
    twin, ids, metric, rule = question.twin, question.ids, question.metric, question.rule
    if not (rule.norms and rule.gates):
        raise AllHeadsError("a rule that freezes norms and gates", repr(rule.name), "Use value, half, live or relp.")
    sides = tuple(f"blocks.{layer}.attn.hook_{side}" for layer in range(len(twin.layers)) for side in "qkv")
    points = (*metric.hook_points, *sides)
    with differentiable(question) as frozen:
        whole = ForwardCache(twin, metric.hook_points)
        with whole.recording():
            value = metric.of(twin(ids), whole.activations)
        tensors = {name: whole.activations[name] for name in (*whole.heads, *whole.neurons, *whole.embeddings)}
        tensors |= {name: tensor for name, (_, tensor) in constants(frozen).items()}
        found = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(tensor) if gradient is None else gradient
            for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
        }
        effects = {name: (gradients[name] * tensor).detach() for name, tensor in tensors.items()}
        zero = ForwardCache(twin, points, cut=True, empty=True)
        with torch.no_grad(), zero.recording():
            twin(ids)
        cut = ForwardCache(twin, points, cut=True)
        with cut.recording():
            value = metric.of(twin(ids), cut.activations)
        embeddings = torch.stack([effects[name][0].sum(-1) for name in whole.embeddings]).sum(0)
        fixed = sum(float(effects[name].sum()) for name in constants(frozen))
        yield Edges(question, cut, zero, gradients, value, embeddings, fixed)


def _chunks(entries: Sequence[Entry], rows: int) -> Iterator[Sequence[Entry]]:
    return (entries[start : start + rows] for start in range(0, len(entries), rows))


def _rows_of_positions(entries: Sequence[Entry], rows: int) -> Iterator[list[list[Entry]]]:
    """Rows of neurons at different positions, some rows at a time."""
    found: list[list[Entry]] = []
    filled: dict[int, int] = {}
    for neuron, position in entries:
        row = filled[position] = filled.get(position, -1) + 1
        if row == len(found):
            found.append([])
        found[row].append((neuron, position))
    return (found[start : start + rows] for start in range(0, len(found), rows))
