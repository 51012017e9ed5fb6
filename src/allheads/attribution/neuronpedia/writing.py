"""A graph as the JSON that Neuronpedia, circuit-tracer and Anthropic's page draw.

Links are the edges through values, in units of the target; with what is left out they sum to a node's effect. Why heads
attend stands at their nodes (``qk_tracing_results``). What the format has no place for is under ``allheads``: at each
node what the graph says of it, and in the settings the rest.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from allheads.attribution.influence import influence
from allheads.attribution.neuronpedia.metadata import metadata
from allheads.attribution.neuronpedia.spots import FEATURE_TYPES, Spot, Spots
from allheads.attribution.score_pairs import TracedScore, traced_scores
from allheads.errors import AllHeadsError
from allheads.twin.capture import captured
from allheads.twin.labels import Label
from allheads.twin.sites import sites

if TYPE_CHECKING:
    from allheads.attribution.attribution_graph import AttributionGraph
    from allheads.attribution.graph_content import Node
    from allheads.attribution.question import Question

#: Shares that are listed of what a head's query and its key are made of, and pairs.
_TRACED = 10


def as_neuronpedia(graph: AttributionGraph, slug: str) -> dict[str, Any]:
    """The content of a file; ``slug`` is the name under which pages list the graph.

    Raises `AllHeadsError` for a graph that was read from a file: it does not know activations and probabilities.
    """
    if graph.question is None:
        raise AllHeadsError(
            "a graph that knows its twin", "one read from a file", "Make it again: ah.graph(twin, prompt, target)."
        )
    spots = Spots(graph, graph.question)
    heads = [(Label.parse(node.label), node.position) for node in graph.nodes if node.kind in ("A", "X")]
    scores, silent = traced_scores(graph.question, heads, _TRACED)
    links, influences = _links(graph, spots), influence(graph).cumulative
    constants = _constants(graph, spots, {link["source"] for link in links})
    for node in constants:
        node["influence"] = influences.get("constants", 1.0)  # pages hide what has none
    nodes = [*_nodes(graph, spots, scores, influences), *constants]
    return {
        "metadata": metadata(graph, slug, spots.columns.tokens, silent),
        "qParams": _marks(graph, spots),
        "nodes": nodes,
        "links": links,
        "qk_only_nodes": _beside(spots, scores, {node["node_id"] for node in nodes}),
    }


def _links(graph: AttributionGraph, spots: Spots) -> list[dict[str, Any]]:
    """Edges through values. Constants reach every layer from a node of their own there."""
    nodes = {node.name: node for node in graph.nodes}

    def source(name: str, target: str) -> Spot:
        node = nodes[name]
        return spots.of(node) if node.kind != "C" else spots.of_constants(spots.layer_of(nodes[target]))

    return [
        {
            "source": source(edge.source, edge.target).node_id,
            "target": spots.of(nodes[edge.target]).node_id,
            "weight": edge.weight,
        }
        for edge in graph.edges
        if edge.side == "V"
    ]


def _nodes(
    graph: AttributionGraph, spots: Spots, scores: dict[str, TracedScore], influences: dict[str, float]
) -> list[dict[str, Any]]:
    assert graph.question is not None
    activations = _activations(graph, graph.question)
    made = []
    for node in graph.nodes:
        if node.kind == "C":
            continue
        says = node.token if node.kind == "E" else node.label
        if note := graph.marks.notes.get(node.name):
            says = f"{says}: {note}"
        found = _drawn(spots.of(node), FEATURE_TYPES[node.kind], says)
        if node.kind == "T":
            probability = _probability(graph.question)
            says = f'Output "{graph.target}" (p={probability:.3f})'
            found |= {"clerp": says, "token_prob": probability, "is_target_logit": True}
        else:
            found["influence"] = influences[node.name]
        if node.name in activations:
            found["activation"] = activations[node.name]
        if node.name in scores:
            found["qk_tracing_results"] = _traced(spots, scores[node.name])
        made.append(found | {"allheads": asdict(node)})
    return made


def _drawn(spot: Spot, feature_type: str, says: str) -> dict[str, Any]:
    """What every page needs of a node."""
    return {
        "node_id": spot.node_id,
        "feature": spot.feature,
        "layer": spot.layer,
        "ctx_idx": spot.column,
        "feature_type": feature_type,
        "jsNodeId": spot.everywhere,
        "clerp": says,
    }


def _constants(graph: AttributionGraph, spots: Spots, used: set[str]) -> list[dict[str, Any]]:
    """The constants in every layer that reads some; and after the last where pages would find no layer above 0."""
    everywhere = [spots.of_constants(layer) for layer in range(spots.last + 1)]
    flat = not any(spots.layer_of(node) for node in graph.parts)
    drawn = [spot for spot in everywhere if spot.node_id in used or (flat and spot is everywhere[-1])]
    return [_drawn(spot, FEATURE_TYPES["C"], "constants") for spot in drawn]


def _traced(spots: Spots, score: TracedScore) -> dict[str, Any]:
    """What makes a head attend, on both sides and in pairs."""

    def named(name: str) -> str:
        return spots.of_part(name).node_id

    return {
        "pair_wise_contributors": [[named(query), named(key), share] for (query, key), share in score.pairs.items()],
        "top_q_marginal_contributors": [[named(name), share] for name, share in score.query.items()],
        "top_k_marginal_contributors": [[named(name), share] for name, share in score.key.items()],
    }


def _beside(spots: Spots, scores: dict[str, TracedScore], kept: set[str]) -> dict[str, Any]:
    """Parts that make heads attend and are not in the graph, by name."""
    names = dict.fromkeys(name for score in scores.values() for name in (*score.query, *score.key))
    found = {}
    for name in names:
        spot, label = spots.of_part(name), name.rpartition("@")[0]
        if spot.node_id not in kept:
            found[spot.node_id] = _drawn(spot, FEATURE_TYPES[Label.parse(label).kind], label)
    return found


def _marks(graph: AttributionGraph, spots: Spots) -> dict[str, Any]:
    """Pins and groups: the state in which a page opens."""
    ids = {node.name: spots.of(node).node_id for node in graph.nodes if node.kind != "C"}
    marks = graph.marks.renamed(ids)
    return {
        "pinnedIds": marks.pins,
        "supernodes": [[group, *members] for group, members in marks.groups.items()],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }


def _activations(graph: AttributionGraph, question: Question) -> dict[str, float]:
    """What neurons pass on, by node."""
    neurons = [(node, Label.parse(node.label)) for node in graph.nodes if node.kind == "N"]
    by_name = {site.name: site for site in sites(question.twin)}
    at = {node.name: by_name[f"{label.stem}.N"] for node, label in neurons}
    seen = captured(question.twin, question.inputs, {site.point for site in at.values()})

    def activation(node: Node, label: Label) -> float:
        site = at[node.name]
        return float(site.seen(seen[site.point])[0, node.position, site.entries(label.index)].sum())

    return {node.name: activation(node, label) for node, label in neurons}


@torch.no_grad()
def _probability(question: Question) -> float:
    """Of a token or class; of the first against the second of two; 1 for anything else, of which there is none."""
    entries = question.metric.entries
    if not entries:
        return 1.0
    logits = question.run()[0, question.metric.position].double()
    if len(entries) == 2:
        return float(logits[list(entries)].softmax(0)[0])
    return float(logits.softmax(0)[entries[0]])
