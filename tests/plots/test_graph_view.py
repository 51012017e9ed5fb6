"""The graph's picture and the cards hold the numbers that the graph, the weights and the run say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import allheads as ah
from allheads.plots.cards import cards
from allheads_labs import zoo


@pytest.fixture(scope="module")
def flows(twin, ids):
    return ah.graph(twin, ids, (3, 5), budget=15)


def test_the_largest_edges_are_drawn_and_a_graph_from_a_file_has_no_cards(flows):
    data = ah.plots.graph(replace(flows, question=None), edges=20).data
    drawn = data["graph"]
    assert len(drawn["edges"]) == 20 and drawn["count"] == len(flows.edges)
    largest = sorted((abs(edge.weight) for edge in flows.edges), reverse=True)[:20]
    assert [abs(edge[2]) for edge in drawn["edges"]] == pytest.approx(largest, rel=1e-3)
    assert {node["name"] for node in drawn["nodes"]} == {node.name for node in flows.nodes}
    target = drawn["nodes"][0]
    assert target["left"]["V"] == pytest.approx([flows.nodes[0].inflow["V"].left_out, flows.target_value], rel=1e-3)
    assert data["cards"] == {} and data["heads"] == []


def test_every_part_has_a_card_and_its_pattern(flows):
    data = ah.plots.graph(flows).data
    labels = {node.label for node in flows.parts}
    assert set(data["cards"]) == labels
    assert {str(ah.Label.parse(head["label"]).neuron) for head in data["heads"]} == labels


def test_neurons_whose_heads_were_edited_have_no_card():
    twin, ids = ah.convert(zoo.build("LlamaForCausalLM").bridge), torch.tensor([5, 9, 30, 22])
    with twin.banks[1].edit() as heads:
        heads.W_O[3] *= 2
    made = cards(twin, ids[None], {"L0.N7": 3, "L1.N7": 3, "L1.A1": 2})
    assert set(made) == {"L0.N7", "L1.A1"}
    graph = ah.graph(twin, ids, 7, budget=60)
    assert any(node.label.startswith("L1.N") for node in graph.parts)
    assert not any(label.startswith("L1.N") for label in ah.plots.graph(graph).data["cards"])


def test_a_neurons_card_reads_its_weights_and_bounds_its_error(twin, ids):
    card = cards(twin, ids, {"L1.N7": 3})["L1.N7"]
    circuit = ah.weights.circuit(twin, "L1.N7", k=8)
    for side in ("opens", "closes", "raises", "lowers", "promotes", "suppresses"):
        assert [float(value) for _, value in card[side]] == pytest.approx(
            [each.value for each in getattr(circuit, side)], rel=0.01
        )
    names = [f"blocks.1.mlp.hook_{name}" for name in ("pre", "pre_linear", "post")]
    with torch.no_grad():
        cache = twin.run_with_cache(ids, names_filter=names)[1]
        t, u, post = (cache[name][0, :, 7].double() for name in names)
        bank = twin.banks[1]
        size = bank.W_out[7].double().norm()
        exact = torch.nn.functional.silu(t) * u
        error = ((bank.gates(t) * u - exact).abs() * size).max()
    assert 0 < float(error) <= card["bound"]
    assert card["bound"] == pytest.approx(float((bank.gates.bound(t) * u.abs() * size).max()))
    assert card["size"] == pytest.approx(float((post.abs() * size).max()))
    assert card["activations"] == pytest.approx(post.tolist(), rel=0.01, abs=1e-6)


def test_a_heads_card_is_what_it_wrote(twin, ids):
    card = cards(twin, ids, {"L2.A1": 9})["L2.A1"]
    with torch.no_grad():
        cache = twin.run_with_cache(ids, names_filter=["blocks.2.attn.hook_z"])[1]
        written = cache["blocks.2.attn.hook_z"][0, 9, 1] @ twin.head("L2.A1").W_O
    assert card["size"] == pytest.approx(float(written.norm()), rel=1e-5) and card["at"] == 9 and card["bound"] == 0
    gain = twin.ln_final.original_component.weight
    logits = (written * gain) @ twin.W_U
    best = (logits - logits.mean()).topk(8).values
    assert [float(value) for _, value in card["promotes"]] == pytest.approx(best.tolist(), rel=0.01)
