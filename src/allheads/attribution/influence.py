r"""How much of a graph leads to its target: influence, the two scores of circuit-tracer, and pruning by them.

With ``A[j, i]`` the absolute edge from i to j, every row divided by its sum, the influence of i is the i-th entry of

    e_T (A + A^2 + A^3 + ...)

for the target T. Its nodes are those of the graph. The scores also count what these read from parts that are not in it,
in the place where replacement models have their error nodes: one column for each layer and position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from allheads.attribution.graph_content import PARTS
from allheads.errors import AllHeadsError
from allheads.result import Result

if TYPE_CHECKING:
    import pandas

    from allheads.attribution.attribution_graph import AttributionGraph
    from allheads.attribution.graph_content import Edge, Inflow, Node

#: A row that sums to less is divided by this.
_LEAST = 1e-10


@dataclass(frozen=True, repr=False)
class Influence(Result):
    """The influence of every node on the target of a graph, and two scores.

    ``cumulative`` is the share of all influence that a node and those above it have, in (0, 1]. ``replacement`` is the
    influence of tokens out of that of tokens and what was left out of the graph; ``completeness`` the share of what
    nodes read that comes from the graph, weighted by their influence.
    """

    influence: dict[str, float]
    cumulative: dict[str, float]
    replacement: float
    completeness: float

    def facts(self) -> dict[str, Any]:
        """The two scores."""
        return {"replacement": self.replacement, "completeness": self.completeness}

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each node, largest first: name, influence, cumulative."""
        import pandas

        rows = [(name, value, self.cumulative[name]) for name, value in self.influence.items()]
        table = pandas.DataFrame(rows, columns=["name", "influence", "cumulative"])
        return table.sort_values("influence", ascending=False, ignore_index=True)


def influence(graph: AttributionGraph) -> Influence:
    """See `AttributionGraph.influence`."""
    values = _influence(_shares(_adjacency(graph)))
    order = values.argsort(descending=True, stable=True)
    cumulative = torch.zeros_like(values)
    cumulative[order] = values[order].cumsum(0) / values.sum().clamp_min(_LEAST)
    names = [node.name for node in graph.nodes]
    return Influence(
        dict(zip(names, values.tolist(), strict=True)),
        dict(zip(names, cumulative.clamp_max(1.0).tolist(), strict=True)),
        *_scores(graph),
    )


def _scores(graph: AttributionGraph) -> tuple[float, float]:
    """Replacement and completeness."""
    count = len(graph.nodes)
    shares = _shares(_with_left_out(graph, _adjacency(graph)))
    values = _influence(shares)
    tokens, left = float(values[:count][_of_kind(graph, "E")].sum()), float(values[count:].sum())
    reads = values + torch.eye(1, len(values), dtype=values.dtype)[0]
    known = 1.0 - shares[:, count:].sum(1)
    return tokens / (tokens + left) if tokens + left else 1.0, float((known * reads).sum() / reads.sum())


def pruned(graph: AttributionGraph, nodes: float, edges: float) -> AttributionGraph:
    """See `AttributionGraph.pruned`."""
    if not 0.0 <= nodes <= 1.0 or not 0.0 <= edges <= 1.0:
        raise AllHeadsError("shares of influence in [0, 1]", f"{nodes!r}, {edges!r}", "Try nodes=0.8, edges=0.98.")
    weights, parts, ends = _adjacency(graph), _of_kind(graph, PARTS), _of_kind(graph, "TE")
    values = _influence(_shares(weights))
    kept = ends | (values >= _threshold(values, nodes))
    shares = _shares(weights * kept[:, None] * kept)
    passing = _influence(shares)
    passing[0] += 1.0
    scores = shares * passing[:, None]
    lines = (scores >= _threshold(scores.flatten(), edges)) & (scores > 0.0)
    while True:  # a part without a way in or out is no longer on a way, nor are constants without one out
        linked = kept & (ends | (lines.any(0) & (lines.any(1) | ~parts)))
        if torch.equal(linked, kept):
            return _only(graph, kept, lines)
        kept, lines = linked, lines & linked[:, None] & linked


def _adjacency(graph: AttributionGraph) -> Float[Tensor, "to from"]:
    """Absolute edges through values, those whose sum is a node's effect; the target stands first."""
    number = {node.name: row for row, node in enumerate(graph.nodes)}
    weights = torch.zeros(len(number), len(number), dtype=torch.float64)
    for edge in graph.edges:
        if edge.side == "V":
            weights[number[edge.target], number[edge.source]] = abs(edge.weight)
    return weights


def _with_left_out(graph: AttributionGraph, weights: Tensor) -> Float[Tensor, "to from"]:
    """More columns, and rows of zeros, for what was left out at each layer and position."""
    count = len(weights)
    places = {place: count + n for n, place in enumerate(dict.fromkeys(map(_place, graph.nodes)))}
    whole = functional.pad(weights, (0, len(places), 0, len(places)))
    for row, node in enumerate(graph.nodes):
        if "V" in node.inflow:
            whole[row, places[_place(node)]] = node.inflow["V"].left_out_size
    return whole


def _of_kind(graph: AttributionGraph, kinds: Sequence[str]) -> Bool[Tensor, " node"]:
    return torch.tensor([node.kind in kinds for node in graph.nodes])


def _place(node: Node) -> tuple[int, int]:
    return node.layer, node.position


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(1, keepdim=True).clamp_min(_LEAST)


def _influence(shares: Tensor) -> Tensor:
    """The sum over all ways to the first node: without circles, none is longer than the number of nodes."""
    reached = shares[0]
    total = reached.clone()
    for _ in range(len(shares)):
        if not reached.any():
            break
        reached = reached @ shares
        total += reached
    return total


def _threshold(scores: Tensor, share: float) -> Tensor:
    """The least of the largest scores that together have this share of all."""
    ordered = scores.sort(descending=True).values
    sums = ordered.cumsum(0) / ordered.sum().clamp_min(_LEAST)
    last = max(int((ordered > 0).sum()) - 1, 0)
    return ordered[min(int(torch.searchsorted(sums, share)), last)]


def _only(graph: AttributionGraph, kept: Tensor, lines: Tensor) -> AttributionGraph:
    """The graph of these nodes and edges; what goes is added to what was left out."""
    number = {node.name: row for row, node in enumerate(graph.nodes)}
    edges = [
        edge
        for edge in graph.edges
        if kept[number[edge.target]]
        and kept[number[edge.source]]
        and (edge.side != "V" or lines[number[edge.target], number[edge.source]])
    ]
    before, after = (_sizes(some) for some in (graph.edges, edges))
    nodes, shown, whole = [], 0.0, 0.0
    for node in (node for node, stays in zip(graph.nodes, kept.tolist(), strict=True) if stays):
        inflow: dict[Any, Inflow] = {}
        for side, flow in node.inflow.items():
            (was, was_size), (now, now_size) = (some.get((node.name, side), (0.0, 0.0)) for some in (before, after))
            left_out, size = flow.left_out + was - now, flow.left_out_size + was_size - now_size
            inflow[side] = replace(flow, kept=flow.total - left_out, left_out=left_out, left_out_size=max(size, 0.0))
            shown, whole = shown + now_size, whole + flow.left_out_size + was_size
        nodes.append(replace(node, inflow=inflow))
    marks = graph.marks.renamed({node.name: node.name for node in nodes})
    return replace(graph, nodes=nodes, edges=edges, marks=marks, coverage=shown / whole if whole else 1.0)


def _sizes(edges: list[Edge]) -> dict[tuple[str, str], tuple[float, float]]:
    """Sum of weights and of absolute weights into every side of every node."""
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    for edge in edges:
        total, size = sums.get((edge.target, edge.side), (0.0, 0.0))
        sums[edge.target, edge.side] = total + edge.weight, size + abs(edge.weight)
    return sums
