"""Influence, scores and pruning: sums over ways, counted one by one, and against circuit-tracer's arithmetic."""

from __future__ import annotations

import pytest

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.graph_content import Edge, Inflow, Node

WEIGHTS = {
    ("embed@0", "L0.N1@0"): 3.0,
    ("embed@1", "L0.N2@1"): 1.0,
    ("L0.N1@0", "L1.A0@1"): -2.0,
    ("L0.N2@1", "L1.A0@1"): 1.0,
    ("embed@1", "L1.A0@1"): 1.0,
    ("L1.A0@1", "target"): 4.0,
    ("L0.N2@1", "target"): -1.0,
    ("constants", "target"): 0.5,
}
LEFT = {"target": 2.5, "L1.A0@1": 4.0}


def node(name, kind, layer, position):
    into = [weight for (_, to), weight in WEIGHTS.items() if to == name]
    left = LEFT.get(name, 0.0)
    inflow = {"V": Inflow(sum(into) + left, sum(into), left, left)} if into else {}
    return Node(name, kind, name.split("@")[0], layer, position, "", 0.0, inflow)


@pytest.fixture
def graph():
    nodes = [
        node("target", "T", 2, 1),
        node("L1.A0@1", "A", 1, 1),
        node("L0.N1@0", "N", 0, 0),
        node("L0.N2@1", "N", 0, 1),
        node("embed@0", "E", -1, 0),
        node("embed@1", "E", -1, 1),
        node("constants", "C", -1, -1),
    ]
    edges = [Edge(source, target, weight) for (source, target), weight in WEIGHTS.items()]
    size = sum(map(abs, WEIGHTS.values()))
    return AttributionGraph("half", "x", ["a", "b"], 3.5, nodes, edges, size / (size + sum(LEFT.values())))


def ways(graph, left_out):
    """Every way from the target, by hand: products of shares."""
    size = {node.name: sum(abs(edge.weight) for edge in graph.into(node.name)) for node in graph.nodes}
    reached = dict.fromkeys(size, 0.0) | {"left out": 0.0}

    def walk(name, share):
        whole = size[name] + (LEFT.get(name, 0.0) if left_out else 0.0)
        for edge in graph.into(name):
            reached[edge.source] += share * abs(edge.weight) / whole
            walk(edge.source, share * abs(edge.weight) / whole)
        if whole:
            reached["left out"] += share * (whole - size[name]) / whole

    walk("target", 1.0)
    return reached


def test_influence_is_the_sum_over_all_ways(graph):
    found, expected = graph.influence(), ways(graph, False)
    del expected["left out"]
    assert found.influence == pytest.approx(expected, abs=1e-12)
    order = sorted(expected, key=lambda name: -expected[name])
    share = 0.0
    for name in order[:-1]:
        share += expected[name] / sum(expected.values())
        assert found.cumulative[name] == pytest.approx(share, abs=1e-12)
    assert list(found.to_dataframe()["name"])[:3] == order[:3]


def test_scores_count_what_was_left_out(graph):
    found, reached = graph.influence(), ways(graph, True)
    tokens = reached["embed@0"] + reached["embed@1"]
    assert found.replacement == pytest.approx(tokens / (tokens + reached["left out"]), abs=1e-12)
    known = {"target": 1 - 2.5 / 8.0, "L1.A0@1": 1 - 4.0 / 8.0}
    reads = reached | {"target": 1.0}
    complete = sum(known.get(name, 1.0) * share for name, share in reads.items()) / sum(reads.values())
    assert found.completeness == pytest.approx(complete, abs=1e-12)


def test_pruning_keeps_the_largest_and_counts_the_rest(graph):
    less = graph.pruned(nodes=0.5, edges=1.0)
    assert [node.name for node in less.parts] == ["L1.A0@1"]
    assert {node.name for node in less.nodes} == {"target", "L1.A0@1", "embed@0", "embed@1"}
    flow = less["L1.A0@1"].inflow["V"]
    assert (flow.total, flow.kept, flow.left_out, flow.left_out_size) == (4.0, 1.0, 3.0, 7.0)
    kept, whole = 4.0 + 1.0, 8.0 + 8.0
    assert less.coverage == pytest.approx(kept / whole)
    for each in less.nodes:
        for flow in each.inflow.values():
            assert flow.kept == pytest.approx(sum(edge.weight for edge in less.into(each.name)))
    assert graph.pruned(1.0, 1.0).edges == graph.edges
    # Edges that carry little go, and parts without a way with them.
    assert len(graph.pruned(1.0, 0.6).edges) < len(graph.edges)
    assert graph.pruned(1.0, 0.1).parts == []


def test_shares_outside_are_refused(graph):
    for shares in ((-0.1, 0.9), (0.5, 1.5)):
        with pytest.raises(ah.AllHeadsError, match="shares of influence"):
            graph.pruned(*shares)
