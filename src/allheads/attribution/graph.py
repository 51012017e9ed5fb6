"""graph: grown backward from the target, always by the parts that write most into what is there."""

from __future__ import annotations

from dataclasses import replace

from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.edges import edges
from allheads.attribution.graph_builder import GraphBuilder, LargestEdges
from allheads.attribution.graph_content import Edge, Inflow, Node
from allheads.attribution.metric import Target
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, Rule
from allheads.errors import AllHeadsError
from allheads.models.observe import Inputs
from allheads.progress import bar
from allheads.twin.prompt import Texts
from allheads.twin.twin import TwinBridge

#: Parts that join in one round.
_ROUND = 32


def graph(
    twin: TwinBridge, tokens: Texts | Inputs, target: Target, *, rule: str | Rule = DEFAULT, budget: int = 100
) -> AttributionGraph:
    r"""Which parts write into which, as far as the target is concerned.

    Nodes are heads and neurons at positions, with all embeddings and the constants. The edge from i to j is what i
    writes straight into j, times what that is worth to the target: the effect of i is the sum of its edges out, the
    effect of j that of its edges in. Under rules that do not freeze patterns, edges into a head's queries and keys are
    there as well, marked ``Q`` and ``K``: first order, and beside the effect, not part of it.

    The target is read at the last position; ``ah.attribute(..., position=p).graph()`` is the graph of another.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        target: as in `ah.attribute`.
        rule: one that freezes norms and gates: value, gate, half, live, relp.
        budget: heads and neurons that are kept at most. Those join first whose edges into what is kept are largest.

    Raises:
        AllHeadsError: as `ah.attribute`; a budget below 1, and rule='gradient'.

    >>> found = graph(twin, "When Mary and John", (" Mary", " John"), budget=50)
    >>> len(found.parts), found.save("graph.json").name
    (50, 'graph.json')
    """
    return grow(Question.of(twin, tokens, target, rule, -1), budget)


def grow(question: Question, budget: int, coverage: float = 1.0) -> AttributionGraph:
    """The graph of a question; see `graph` and `Attribution.graph`."""
    if not isinstance(budget, int) or budget < 1 or not 0.0 < coverage <= 1.0:
        raise AllHeadsError("a budget from 1, a coverage in (0, 1]", f"{budget!r}, {coverage!r}", "Try budget=100.")
    if question.metric.stream is not None:
        raise AllHeadsError("a target made of the logits", question.metric.name, "Graph ah.attribute's results.")
    with edges(question) as flows:
        builder = GraphBuilder(flows)
        builder.read(None, [flows.into_target()])
        with bar("Graph", total=budget) as progress:
            while len(builder.order) < budget and builder.coverage < coverage:
                joined = builder.join(min(_ROUND, budget - len(builder.order)))
                if not joined:
                    break
                progress.update(joined)
        return _finished(builder, question)


def _finished(builder: GraphBuilder, question: Question) -> AttributionGraph:
    metric, flows = question.metric, builder.flows
    last = len(flows.cut.layers)
    tokens = question.output_tokens
    nodes: dict[int | None, Node] = {}
    nodes[None] = Node("target", "T", metric.name, last, metric.position, _at(tokens, metric.position), 0.0, {})
    for part in builder.order:
        site, index, position = builder.entry_of(part)
        label = site.label(index)
        token = question.tokens_at(label, flows.cut.leaves[site.point].shape[1])[position]
        layer = site.location.layer
        nodes[part] = Node(f"{label}@{position}", site.kind, str(label), layer, position, token, 0.0, {})
    shown: list[Edge] = []
    for record in builder.records:
        node, flow = nodes[record.node], record.inflow
        found = _edges(builder, record, nodes)
        shown += found
        kept = sum(edge.weight for edge in found)
        node.inflow[flow.side] = Inflow(
            flow.total, kept, flow.total - kept, max(record.size - builder.shown(record), 0.0)
        )
        if flow.side == "V":
            nodes[record.node] = replace(node, effect=flow.total)
    ends = [
        Node(
            f"{begin}@{position}",
            "E",
            begin,
            -1,
            position,
            question.token_of(begin, position, len(effects)),
            effect,
            {},
        )
        for begin, effects in flows.embeddings.items()
        for position, effect in enumerate(effects.tolist())
    ]
    if any(edge.source == "constants" for edge in shown):
        ends.append(Node("constants", "C", "constants", -1, -1, "", flows.constants, {}))
    everything = [*nodes.values(), *ends]
    value = float(flows.value.detach())
    made = AttributionGraph(question.rule.name, metric.name, tokens, value, everything, shown, builder.coverage)
    return replace(made, question=question)


def _edges(builder: GraphBuilder, record: LargestEdges, nodes: dict[int | None, Node]) -> list[Edge]:
    """Edges of a record that come from kept parts, embeddings and constants."""
    end, flow = nodes[record.node].name, record.inflow
    kept = builder.kept[record.parts]
    parts = zip(record.parts[kept].tolist(), record.weights[kept].tolist(), strict=True)
    found = [Edge(nodes[part].name, end, weight, flow.side) for part, weight in parts]
    for begin, weights in flow.embeddings.items():
        embeddings = enumerate(weights.tolist(), flow.at.start or 0)
        found += [Edge(f"{begin}@{position}", end, weight, flow.side) for position, weight in embeddings]
    found.append(Edge("constants", end, flow.constants, flow.side))
    return [edge for edge in found if edge.weight != 0.0]


def _at(tokens: list[str], position: int) -> str:
    """The token at a position, where outputs stand at tokens."""
    return tokens[position] if position < len(tokens) else ""
