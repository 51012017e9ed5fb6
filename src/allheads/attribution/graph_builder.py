"""Growing a graph: which parts are kept, and what all others write into these."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.attribution.attribution_graph import PartKind
from allheads.attribution.edges import Edges, Entry, IncomingEdges

#: Edges of a node that are remembered one by one; the rest is left out, and counted.
_EDGES = 2048


@dataclass(frozen=True)
class LargestEdges:
    """What one side of a kept node reads: its largest edges by part, and all of them in sum."""

    node: int | None
    inflow: IncomingEdges
    parts: Int[Tensor, " edge"]
    weights: Float[Tensor, " edge"]
    size: float


class GraphBuilder:
    """Parts that are kept, and what all others write into these.

    Parts have numbers: heads ``[layer head pos]`` first, then neurons ``[layer pos d_mlp]``.
    """

    def __init__(self, flows: Edges) -> None:
        self.flows = flows
        written = flows.cut.leaves
        pos, heads = written[flows.cut.heads[0]].shape[1:3]
        self.head_shape = (len(flows.cut.layers), heads, pos)
        self.neuron_shape = (len(flows.cut.layers), pos, written[flows.cut.neurons[0]].shape[2])
        like = flows.value.detach()
        self.heads, self.neurons = like.new_zeros(self.head_shape), like.new_zeros(self.neuron_shape)
        self.kept = torch.zeros(self.heads.numel() + self.neurons.numel(), dtype=torch.bool, device=like.device)
        self.order: list[int] = []
        self.records: list[LargestEdges] = []

    def join(self, count: int) -> int:
        """Keep the parts that write most into what is kept; how many there were."""
        weights = torch.cat([self.heads.flatten(), self.neurons.flatten()]).abs().masked_fill(self.kept, 0.0)
        found = [part for part in weights.topk(min(count, len(weights))).indices.tolist() if weights[part] > 0]
        self.order += found
        self.kept[found] = True
        groups: dict[tuple[PartKind, int], list[Entry]] = defaultdict(list)
        for part in found:
            kind, layer, index, position = self.entry_of(part)
            groups[kind, layer].append((index, position))
        for (kind, layer), entries in groups.items():
            into = self.flows.into_heads if kind == "A" else self.flows.into_neurons
            for (index, position), sides in into(layer, entries):
                self.read(self.number(kind, layer, index, position), sides)
        return len(found)

    def read(self, node: int | None, sides: list[IncomingEdges]) -> None:
        """Note what flows into a node, None for the target."""
        for flow in sides:
            at = slice(flow.first, flow.first + flow.heads.shape[-1])
            self.heads[:, :, at] += flow.heads
            self.neurons[:, at] += flow.neurons
            every = torch.cat([flow.heads.flatten(), flow.neurons.flatten()])
            largest = every.abs().topk(min(_EDGES, len(every))).indices
            size = float(every.abs().sum() + flow.embeddings.abs().sum()) + abs(flow.constants)
            self.records.append(LargestEdges(node, flow, self._numbers(flow, largest), every[largest], size))

    @property
    def coverage(self) -> float:
        """The share of absolute edge weight into kept nodes that comes from kept nodes."""
        return sum(self.shown(record) for record in self.records) / max(
            sum(record.size for record in self.records), 1e-300
        )

    def shown(self, record: LargestEdges) -> float:
        """Absolute weight of a record's edges that are kept."""
        kept = record.weights[self.kept[record.parts]].abs().sum()
        return float(kept + record.inflow.embeddings.abs().sum()) + abs(record.inflow.constants)

    def number(self, kind: PartKind, layer: int, index: int, position: int) -> int:
        """The number of a part."""
        _, heads, pos = self.head_shape
        if kind == "A":
            return (layer * heads + index) * pos + position
        return self.heads.numel() + (layer * pos + position) * self.neuron_shape[2] + index

    def entry_of(self, part: int) -> tuple[PartKind, int, int, int]:
        """The kind, layer, index and position of a numbered part."""
        if part < self.heads.numel():
            layer, index, position = np.unravel_index(part, self.head_shape)
            return "A", int(layer), int(index), int(position)
        layer, position, index = np.unravel_index(part - self.heads.numel(), self.neuron_shape)
        return "N", int(layer), int(index), int(position)

    def _numbers(self, flow: IncomingEdges, chosen: Tensor) -> Tensor:
        """Numbers of parts, of entries in the flattened heads and neurons of a flow."""
        heads = flow.heads.numel()
        layer, head, at = torch.unravel_index(chosen.clamp_max(heads - 1), flow.heads.shape)
        of_heads = (layer * self.head_shape[1] + head) * self.head_shape[2] + at + flow.first
        layer, at, neuron = torch.unravel_index((chosen - heads).clamp_min(0), flow.neurons.shape)
        of_neurons = (layer * self.neuron_shape[1] + at + flow.first) * self.neuron_shape[2] + neuron
        return torch.where(chosen < heads, of_heads, self.heads.numel() + of_neurons)
