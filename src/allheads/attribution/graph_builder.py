"""Growing a graph: which parts are kept, and what all others write into these."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.attribution.constants import ULPS
from allheads.attribution.edges import Edges, Entry, IncomingEdges
from allheads.errors import AllHeadsError
from allheads.twin.sites import SCALARS, Site

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

    Parts have numbers, sublayer by sublayer: heads ``[head pos]``, neurons ``[pos d_mlp]``.
    """

    def __init__(self, flows: Edges) -> None:
        self.flows = flows
        self.sites = {site.name: site for site in flows.cut.sites}
        lengths = {name: flows.cut.leaves[site.point].shape[1] for name, site in self.sites.items()}
        self.shapes = {
            name: (length, self.sites[name].count) if name.endswith(SCALARS) else (self.sites[name].count, length)
            for name, length in lengths.items()
        }
        sizes = [rows * columns for rows, columns in self.shapes.values()]
        self.starts = [0, *np.cumsum(sizes).tolist()]
        self.weights = flows.value.detach().new_zeros(sum(sizes))
        self.kept = torch.zeros(sum(sizes), dtype=torch.bool, device=self.weights.device)
        self.order: list[int] = []
        self.records: list[LargestEdges] = []
        self._all = torch.arange(sum(sizes), dtype=torch.int32, device=self.weights.device)
        self._numbers = self._tables(self._all)
        self._sums = self._tables(self.weights)

    def join(self, count: int) -> int:
        """Keep the parts that write most into what is kept; how many there were."""
        weights = self.weights.abs().masked_fill(self.kept, 0.0)
        found = [part for part in weights.topk(min(count, len(weights))).indices.tolist() if weights[part] > 0]
        self.order += found
        self.kept[found] = True
        groups: dict[Site, dict[Entry, int]] = defaultdict(dict)
        for part in found:
            site, index, position = self.entry_of(part)
            groups[site][index, position] = part
        for site, entry, sides in self.flows.into({site: list(entries) for site, entries in groups.items()}):
            self.read(groups[site][entry], sides)
        return len(found)

    def read(self, node: int | None, sides: list[IncomingEdges]) -> None:
        """Note what flows into a node, None for the target."""
        for flow in sides:
            numbers, weights = [], []
            for name, part in flow.parts.items():
                at = flow.at if name.endswith(SCALARS) else (slice(None), flow.at)
                self._sums[name][at] += part
                numbers.append(self._numbers[name][at].flatten())
                weights.append(part.flatten())
            # In the first layer, there are no parts before.
            every, number = torch.cat([*weights, self.weights[:0]]), torch.cat([*numbers, self._all[:0]])
            largest = every.abs().topk(min(_EDGES, len(every))).indices
            size = flow.size()
            self._require_whole(flow, float(every.double().sum()), size)
            self.records.append(LargestEdges(node, flow, number[largest].long(), every[largest], size))

    def _require_whole(self, flow: IncomingEdges, parts: float, size: float) -> None:
        """Edges have to sum to what they flow into. Raises `AllHeadsError` where something flows in unseen."""
        begins = sum(float(begin.double().sum()) for begin in flow.embeddings.values())
        gap = abs(flow.total - parts - begins - flow.constants)
        if not gap <= ULPS * torch.finfo(self.weights.dtype).eps * max(size, abs(flow.total)):
            architecture, rule = self.flows.question.twin.cfg.architecture, self.flows.question.rule.name
            raise AllHeadsError(
                "edges that sum to what they flow into",
                f"a part of {architecture} that misses {gap:.0e} of {size:.0e} under rule {rule!r}",
                "Something in its layers is not read: ah.attribute says what it can.",
            )

    @property
    def coverage(self) -> float:
        """The share of absolute edge weight into kept nodes that comes from kept nodes."""
        return sum(self.shown(record) for record in self.records) / max(
            sum(record.size for record in self.records), 1e-300
        )

    def shown(self, record: LargestEdges) -> float:
        """Absolute weight of a record's edges that are kept."""
        kept = float(record.weights[self.kept[record.parts]].abs().sum())
        begins = sum(float(begin.abs().sum()) for begin in record.inflow.embeddings.values())
        return kept + begins + abs(record.inflow.constants)

    def entry_of(self, part: int) -> tuple[Site, int, int]:
        """The sublayer, number and position of a numbered part."""
        number = int(np.searchsorted(self.starts, part, side="right")) - 1
        name = list(self.sites)[number]
        row, column = divmod(part - self.starts[number], self.shapes[name][1])
        return self.sites[name], *((column, row) if name.endswith(SCALARS) else (row, column))

    def _tables(self, flat: Tensor) -> dict[str, Tensor]:
        """Views by sublayer of one number for every part."""
        ends = zip(self.shapes.items(), self.starts[:-1], self.starts[1:], strict=True)
        return {name: flat[start:end].view(shape) for (name, shape), start, end in ends}
