"""graph: grown backward from the target, always by the parts that write most into what is there."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from allheads.attribution.attribution_graph import AttributionGraph, Edge, Inflow, Node
from allheads.attribution.edges import edges
from allheads.attribution.graph_builder import Growth, Record
from allheads.attribution.metrics import Target, TargetLike, make_target, token_ids, token_names
from allheads.attribution.rules import DEFAULT, Rule, rule_named
from allheads.errors import AllHeadsError
from allheads.progress import bar
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge

#: Parts that join in one round.
_ROUND = 32


def graph(
    twin: TwinBridge,
    tokens: str | Tensor,
    target: TargetLike,
    *,
    rule: str | Rule = DEFAULT,
    position: int = -1,
    budget: int = 100,
    coverage: float = 1.0,
) -> AttributionGraph:
    r"""Which parts write into which, as far as the target is concerned.

    Nodes are heads and neurons at positions, with all embeddings and the constants. The edge from i to j is what i
    writes straight into j, times what that is worth to the target: the effect of i is the sum of its edges out, the
    effect of j that of its edges in. Under rules that do not hold patterns, edges into a head's queries and keys are
    there as well, marked ``Q`` and ``K``: first order, and beside the effect, not part of it.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        target: as in `ah.attribute`.
        rule: one that holds norms and gates: frozen, gate, half, live, relp.
        position: where the target's logits are read.
        budget: heads and neurons that are kept at most. Those join first whose edges into what is kept are largest.
        coverage: stop when this share of absolute edge weight into kept nodes is kept.

    Raises:
        AllHeadsError: as `ah.attribute`; a budget below 1, a coverage outside (0, 1], and rule='gradient'.

    >>> found = graph(twin, "When Mary and John", (" Mary", " John"), budget=50)  # doctest: +SKIP
    >>> found.save("graph.json")  # doctest: +SKIP
    """
    chosen = rule_named(rule)
    ids = token_ids(twin, tokens)
    asked = make_target(twin, target, position, ids.shape[1])
    if not isinstance(budget, int) or budget < 1 or not 0.0 < coverage <= 1.0:
        raise AllHeadsError("a budget from 1, a coverage in (0, 1]", f"{budget!r}, {coverage!r}", "Try budget=100.")
    with edges(twin, ids, asked, chosen) as flows:
        growth = Growth(flows)
        growth.read(None, [flows.into_target()])
        with bar("Graph", total=budget) as shown:
            while len(growth.order) < budget and growth.coverage < coverage:
                joined = growth.join(min(_ROUND, budget - len(growth.order)))
                if not joined:
                    break
                shown.update(joined)
        return _finished(growth, asked, chosen, token_names(twin, ids))


def _finished(growth: Growth, asked: Target, rule: Rule, tokens: list[str]) -> AttributionGraph:
    flows, last = growth.flows, len(growth.flows.cut.layers)
    nodes: dict[int | None, Node] = {}
    nodes[None] = Node("target", "T", asked.name, last, asked.position, tokens[asked.position], 0.0, {})
    for part in growth.order:
        kind, layer, index, position = growth.place(part)
        label = str(Label(f"L{layer}", kind, index))
        nodes[part] = Node(f"{label}@{position}", kind, label, layer, position, tokens[position], 0.0, {})
    shown: list[Edge] = []
    for record in growth.records:
        node, flow = nodes[record.node], record.inflow
        found = _edges(growth, record, nodes)
        shown += found
        kept = sum(edge.weight for edge in found)
        node.inflow[flow.side] = Inflow(
            flow.total, kept, flow.total - kept, max(record.size - growth.shown(record), 0.0)
        )
        if flow.side == "V":
            nodes[record.node] = replace(node, effect=flow.total)
    ends = [
        Node(f"embed@{position}", "E", "embed", -1, position, tokens[position], float(effect), {})
        for position, effect in enumerate(flows.embeddings)
    ]
    if any(edge.source == "constants" for edge in shown):
        ends.append(Node("constants", "C", "constants", -1, -1, "", flows.constants, {}))
    everything = [*nodes.values(), *ends]
    return AttributionGraph(
        rule.name, asked.name, tokens, float(flows.value.detach()), everything, shown, growth.coverage
    )


def _edges(growth: Growth, record: Record, nodes: dict[int | None, Node]) -> list[Edge]:
    """Edges of a record that come from kept parts, embeddings and constants."""
    end, flow = nodes[record.node].name, record.inflow
    kept = growth.kept[record.parts]
    parts = zip(record.parts[kept].tolist(), record.weights[kept].tolist(), strict=True)
    found = [Edge(nodes[part].name, end, weight, flow.side) for part, weight in parts]
    begun = enumerate(flow.embeddings.tolist(), flow.first)
    found += [Edge(f"embed@{position}", end, weight, flow.side) for position, weight in begun]
    found.append(Edge("constants", end, flow.constants, flow.side))
    return [edge for edge in found if edge.weight != 0.0]
