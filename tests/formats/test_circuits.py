"""Circuits in EAP-IG's JSON: what its reader would make of them, and what comes back."""

from __future__ import annotations

import json

import pytest
import torch

import allheads as ah
from allheads_labs.zoo.building import build


@pytest.fixture(scope="module")
def twin(tiny):
    return ah.convert(tiny("llama"))


@pytest.fixture(scope="module")
def found(twin, tokens):
    return ah.attribute(twin, tokens[:1], (5, 7))


class _Reader:
    """The rules of EAP-IG's reader: it makes the whole graph from ``cfg`` and looks every name of the file up."""

    def __init__(self, path) -> None:
        content = json.loads(path.read_text("utf-8"))
        assert {"cfg", "nodes", "edges"} <= content.keys()
        cfg = content["cfg"]
        self.nodes, self.edges = dict.fromkeys(["input", "logits"], False), {}
        stream = ["input"]
        for layer in range(cfg["n_layers"]):
            heads = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]
            mlp = f"m{layer}"
            self.nodes |= dict.fromkeys([*heads, mlp], False)
            into_mlp = stream if cfg["parallel_attn_mlp"] else stream + heads
            self.edges |= {(source, head, side): False for source in stream for head in heads for side in "qkv"}
            self.edges |= {(source, mlp, ""): False for source in into_mlp}
            stream = [*stream, *heads, mlp]
        self.edges |= {(source, "logits", ""): False for source in stream}
        self.scores = {}
        for name, node in content["nodes"].items():
            assert name in self.nodes
            if name != "logits":
                self.nodes[name] = node["in_graph"]
                self.scores[name] = node["score"]
            if "neurons" in node:
                raise AssertionError("dimensions of what a node writes were never measured")
        for name, edge in content["edges"].items():
            source, _, end = name.partition("->")
            end, _, side = end.partition("<")
            assert (source, end, side.rstrip(">")) in self.edges
            assert isinstance(edge["score"], float)
            self.edges[source, end, side.rstrip(">")] = edge["in_graph"]


def test_their_reader_finds_every_name_and_all_edges_between_what_is_in_the_graph(found, tmp_path):
    read = _Reader(ah.formats.write_circuit(found, tmp_path / "circuit.json", keep=9))
    inside = {name for name, kept in read.nodes.items() if kept} | {"logits"}
    assert 3 < len(inside) < len(read.nodes)
    assert {edge for edge, kept in read.edges.items() if kept} == {
        edge for edge in read.edges if {edge[0], edge[1]} <= inside
    }


def test_scores_are_sums_of_effects_over_positions(found, tmp_path):
    read = _Reader(ah.formats.write_circuit(found, tmp_path / "circuit.json"))
    for layer in range(3):
        assert read.scores[f"m{layer}"] == pytest.approx(float(found.neurons[layer].sum()), abs=1e-6)
        for head in range(4):
            effects = [part.effect for part in found.of(f"L{layer}.A{head}")]
            assert read.scores[f"a{layer}.h{head}"] == pytest.approx(sum(effects), abs=1e-6)
    assert read.scores["input"] == pytest.approx(float(found.embeddings.sum()), abs=1e-6)


def test_the_largest_parts_come_back_as_labels(twin, found, tmp_path):
    circuit = ah.formats.read_circuit(ah.formats.write_circuit(found, tmp_path / "circuit.json", keep=30))
    sums = {f"{name}{i}": float(row.sum()) for name in found.effects for i, row in enumerate(found._by_part(name))}
    expected = sorted(sums, key=lambda label: -abs(sums[label]))[:30]
    labels = circuit.labels(twin)
    assert set(labels) == set(expected)
    assert {*labels} | {*circuit.outside(twin)} == sums.keys() and not {*labels} & {*circuit.outside(twin)}
    assert {part.label: part.score for part in circuit.parts if part.label in expected} == pytest.approx(
        {label: sums[label] for label in expected}
    )
    facts = circuit.facts()
    assert facts["parts"] == facts["heads"] + facts["neurons"] == 30
    assert facts["edges"] == len(circuit.inner_edges())
    with ah.ablate(twin, circuit.outside(twin)), ah.patch(twin, dict.fromkeys(labels, 0.0)):
        silent = twin(torch.tensor([[1, 2]]))
    with ah.ablate(twin, sums):
        assert torch.equal(silent, twin(torch.tensor([[1, 2]])))


def test_parallel_layers_have_no_edges_from_heads_into_their_mlp(tmp_path):
    twin = ah.convert(build("GPTNeoXForCausalLM").bridge)
    found = ah.attribute(twin, torch.tensor([[1, 2, 3]]), 5)
    path = ah.formats.write_circuit(found, tmp_path / "circuit.json", keep=10_000)
    read = _Reader(path)
    assert ("a0.h0", "m0", "") not in read.edges and read.edges["a0.h0", "m1", ""]
    circuit = ah.formats.read_circuit(path)
    assert circuit.outside(twin) == [] and circuit.shape.parallel_attn_mlp


def _theirs(**changes):
    """A circuit as EAP-IG writes one: scores may be NaN, ``neurons`` are output dimensions."""
    content = {
        "cfg": {"n_layers": 3, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32},
        "nodes": {
            "input": {"in_graph": True, "score": float("nan")},
            "a0.h1": {"in_graph": True, "score": 0.5, "neurons": [True] * 32, "neurons_scores": [0.1] * 32},
            "a2.h0": {"in_graph": False, "score": float("nan")},
            "m1": {"in_graph": True, "score": -0.25},
            "logits": {"in_graph": True},
        },
        "edges": {"input->a0.h1<q>": {"score": 0.1, "in_graph": True}, "m1->logits": {"score": 0, "in_graph": False}},
    }
    return {**content, **changes}


def test_their_circuits_are_read(twin, tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(_theirs()), "utf-8")
    circuit = ah.formats.read_circuit(path)
    assert circuit.labels(twin) == ["L0.A1", *(f"L1.N{neuron}" for neuron in range(64))]
    assert circuit.facts()["mlps"] == 1 and circuit.edges == 1
    by_label = {part.label: part for part in circuit.parts}
    assert by_label["L2.A0"].score is None and by_label["L1.N"].score == -0.25
    older = _theirs(nodes={"input": True, "a0.h1": True, "m1": False}, neurons={"a0.h1": [True] * 32})
    path.write_text(json.dumps(older), "utf-8")
    assert ah.formats.read_circuit(path).labels(twin) == ["L0.A1"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nodes": {"a0.h9": {"in_graph": True}}}, "a node 'a0.h9', which such a model has not"),
        ({"nodes": {"m3": {"in_graph": True}}}, "a node 'm3', which such a model has not"),
        ({"nodes": {"a0.h1": {"in_graph": True, "neurons": [True, False]}}}, "a0.h1 with 1 of 2 output dimensions"),
        ({"nodes": {"a0.h1": True}, "neurons": {"a0.h1": [False]}}, "a0.h1 with 0 of 1 output dimensions"),
        ({"nodes": {"a0.h1": {}}}, "input should be a valid boolean"),
        ({"nodes": {"m1": {"in_graph": True, "hidden_neurons": {"one": 1.0}}}}, "hidden_neurons of m1 that are none"),
        ({"nodes": {"a0.h1": {"in_graph": True, "hidden_neurons": {"1": 1.0}}}}, "hidden_neurons of a0.h1"),
        ({"cfg": {"n_layers": "3"}}, "n_layers: input should be a valid integer"),
        ({"edges": []}, "input should be an object"),
    ],
)
def test_what_is_no_circuit_is_refused_by_name(changes, reason, tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(_theirs(**changes)), "utf-8")
    with pytest.raises(ah.AllHeadsError, match=reason):
        ah.formats.read_circuit(path)


def test_a_circuit_of_another_model_has_no_labels_here(tiny, found, tmp_path):
    circuit = ah.formats.read_circuit(ah.formats.write_circuit(found, tmp_path / "circuit.json"))
    with pytest.raises(ah.AllHeadsError, match="a twin of the circuit's sizes"):
        circuit.labels(ah.convert(tiny("gpt2")))
    narrow = ah.convert(tiny("llama", intermediate_size=16))
    with pytest.raises(ah.AllHeadsError, match=r"one without L\d\.N"):
        circuit.labels(narrow)


@pytest.mark.parametrize(("name", "kind"), [("MixtralForCausalLM", "experts"), ("T5ForConditionalGeneration", "stack")])
def test_parts_without_a_node_are_refused(name, kind, tmp_path):
    twin = ah.convert(build(name).bridge)
    ids = torch.tensor([[1, 2, 3]])
    inputs = {"input": ids, "decoder_input": ids} if kind == "stack" else ids
    found = ah.attribute(twin, inputs, 5, rule="gradient")
    with pytest.raises(ah.AllHeadsError, match=f"of .*{kind}, which has no node"):
        ah.formats.write_circuit(found, tmp_path / "circuit.json")
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused_before_anything_is_written(found, tmp_path):
    for keep in (0, 1.5, True):
        with pytest.raises(ah.AllHeadsError, match="a number of parts from 1"):
            ah.formats.write_circuit(found, tmp_path / "circuit.json", keep=keep)
    with pytest.raises(ah.AllHeadsError, match=r"ends in \.json"):
        ah.formats.write_circuit(found, tmp_path / "circuit.pt")
    assert not list(tmp_path.iterdir())
