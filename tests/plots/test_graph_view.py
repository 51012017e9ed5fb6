"""The graph's picture and the cards hold the numbers that the graph, the weights and the run say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.question import Question
from allheads.plots.cards import cards
from allheads_labs import zoo


def _asked(twin, ids):
    return Question.of(twin, ids, 3, "half", -1)


@pytest.fixture(scope="module")
def flows(twin, ids):
    return ah.graph(twin, ids, (3, 5), budget=15)


def test_the_largest_edges_are_drawn_and_a_graph_from_a_file_has_no_cards(flows):
    data = ah.plots.graph(replace(flows, question=None), edges=20).data
    drawn = data["graph"]
    assert drawn["shown"] == 20 and drawn["count"] == len(drawn["edges"]) == len(flows.edges)
    assert drawn["flow"] == pytest.approx(sum(abs(edge.weight) for edge in flows.edges), rel=1e-3)
    assert drawn["held"] == "Norms, attention patterns and gates are held fixed."
    largest = sorted((abs(edge.weight) for edge in flows.edges), reverse=True)
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
    made = cards(_asked(twin, ids[None]), {"L0.N7": 3, "L1.N7": 3, "L1.A1": 2})
    assert set(made) == {"L0.N7", "L1.A1"}
    graph = ah.graph(twin, ids, 7, budget=60)
    assert any(node.label.startswith("L1.N") for node in graph.parts)
    assert not any(label.startswith("L1.N") for label in ah.plots.graph(graph).data["cards"])


def test_a_neurons_card_reads_its_weights_and_bounds_its_error(twin, ids):
    card = cards(_asked(twin, ids), {"L1.N7": 3})["L1.N7"]
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
    card = cards(_asked(twin, ids), {"L2.A1": 9})["L2.A1"]
    with torch.no_grad():
        cache = twin.run_with_cache(ids, names_filter=["blocks.2.attn.hook_z"])[1]
        written = cache["blocks.2.attn.hook_z"][0, 9, 1] @ twin.head("L2.A1").W_O
    assert (
        card["size"] == pytest.approx(float(written.norm()), rel=1e-5)
        and card["at"].startswith("9 ")
        and card["bound"] == 0
    )
    gain = twin.ln_final.original_component.weight
    logits = (written * gain) @ twin.W_U
    best = (logits - logits.mean()).topk(8).values
    assert [float(value) for _, value in card["promotes"]] == pytest.approx(best.tolist(), rel=0.01)


@pytest.mark.parametrize(
    ("family", "first", "last"),
    [
        ("BartForConditionalGeneration", "E0 ", "D6 "),
        ("MixtralForCausalLM", "0 ", "11 "),
        ("ViTForImageClassification", "0 #0", "16 #16"),
        ("LlavaForConditionalGeneration", "V0 #0", "27 "),
    ],
)
def test_streams_stand_side_by_side_whatever_the_network_is(family, first, last, tmp_path):
    sample = zoo.build(family, seed=3, dtype=torch.float64)
    twin = ah.convert(sample.bridge)
    outputs = sample.run(twin)
    target = torch.randn(outputs.shape[-1], generator=torch.Generator().manual_seed(0)).to(outputs)
    found = ah.graph(twin, sample.inputs, target, budget=40)
    page = ah.plots.graph(found)
    columns, nodes = page.data["graph"]["columns"], page.data["graph"]["nodes"]
    assert columns[0].startswith(first) and columns[-1].startswith(last) and len(set(columns)) == len(columns)
    for node, drawn in zip(found.nodes, nodes, strict=True):
        if node.kind in "AXN":
            stream = ah.Label.parse(node.label).stream
            assert columns[drawn["column"]].startswith(f"{stream}{node.position} "), node.name
    assert {node.label for node in found.parts} == set(page.data["cards"])
    assert all("bound" in card for card in page.data["cards"].values())
    again = AttributionGraph.load(found.save(tmp_path / "graph.json"))
    assert again == found and ah.plots.graph(again).data["graph"] == page.data["graph"]


def test_what_cannot_be_read_through_the_embeddings_is_said_on_the_card():
    sample = zoo.build("BertForMaskedLM", seed=3)
    twin = ah.convert(sample.bridge)
    made = cards(Question.of(twin, sample.inputs, 7, "half", -1), {"L1.A1": 2, "L1.N3": 2})
    assert "stream that ends in logits" in made["L1.A1"]["unread"][0] and "promotes" not in made["L1.A1"]
    assert "stream that ends in logits" in made["L1.N3"]["unread"][0] and made["L1.N3"]["promotes"] == []
    assert made["L1.A1"]["size"] > 0 and len(made["L1.N3"]["opens"]) == 8
