"""Graphs as files of Neuronpedia and circuit-tracer: the schema, what trips their pages, numbers, and the way back."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import jsonschema
import pytest
import torch

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.marks import Marks
from allheads.attribution.neuronpedia.numbering import cantor
from allheads.attribution.neuronpedia.writing import as_neuronpedia
from allheads_labs import zoo

TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
#: The published schema, version 1.0.0, written down anew, with the types that circuit-tracer's own reader adds.
SCHEMA = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt", "transcoder_list"],
            "properties": {
                "slug": TEXT,
                "scan": TEXT,
                "prompt": TEXT,
                "prompt_tokens": {"type": "array", "items": TEXT},
                "transcoder_list": {"type": "array", "items": TEXT},
                "schema_version": {"const": 1},
                "node_threshold": NUMBER,
                "info": {"type": "object"},
                "generation_settings": {"type": "object", "properties": {"max_feature_nodes": WHOLE}},
            },
        },
        "qParams": {
            "type": "object",
            "required": ["pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"],
            "properties": {
                "pinnedIds": {"type": "array", "items": TEXT},
                "supernodes": {"type": "array", "items": {"type": "array", "items": TEXT, "minItems": 2}},
                "linkType": {"const": "both"},
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
                "properties": {
                    "node_id": TEXT,
                    "feature": WHOLE,
                    "layer": TEXT,
                    "ctx_idx": WHOLE,
                    "feature_type": {"enum": ["cross layer transcoder", "lorsa", "embedding", "logit", "bias"]},
                    "jsNodeId": TEXT,
                    "clerp": TEXT,
                    "influence": NUMBER | {"minimum": 0, "maximum": 1},
                    "activation": NUMBER,
                    "token_prob": NUMBER | {"minimum": 0, "maximum": 1},
                    "is_target_logit": {"type": "boolean"},
                    "qk_tracing_results": {
                        "type": "object",
                        "required": [
                            "pair_wise_contributors",
                            "top_q_marginal_contributors",
                            "top_k_marginal_contributors",
                        ],
                    },
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "additionalProperties": False,
                "properties": {"source": TEXT, "target": TEXT, "weight": NUMBER},
            },
        },
    },
}
PAIR = (7, 9)
IOI = "When Mary and John went to the store, John gave a drink to"


def first_squared(logits):
    return logits[0] ** 2


#: A model, a target, a rule, and how long the prompt is.
CASES = [
    *(("LlamaForCausalLM", PAIR, rule, 6) for rule in ("half", "value", "relp", "live")),
    ("LlamaForCausalLM", 7, "half", 1),
    ("LlamaForCausalLM", 7, "half", 2),
    ("LlamaForCausalLM", first_squared, "half", 5),
    ("GPT2LMHeadModel", PAIR, "half", 6),
    ("Gemma2ForCausalLM", 7, "half", 6),
    ("MixtralForCausalLM", PAIR, "half", 6),
    ("T5ForConditionalGeneration", 7, "half", 6),
    ("BloomForCausalLM", 7, "relp", 6),
]


def _named(case):
    """The same in every process: a function's text has its address."""
    name, target, rule, length = case
    return f"{name}-{getattr(target, '__name__', target)}-{rule}-{length}"


@pytest.fixture(scope="module")
def made():
    """A graph of a model of this kind, kept."""
    known, twins = {}, {}

    def make(name, target=7, rule="half", length=6, budget=60):
        key = name, target, rule, length, budget
        if key not in known:
            if name not in twins:
                sample = zoo.build(name, dtype=torch.float64)
                twins[name] = ah.convert(sample.bridge), sample.inputs
            twin, inputs = twins[name]
            inputs = {given: value[:1, :length] for given, value in inputs.items()}
            known[key] = ah.graph(twin, inputs, target, rule=rule, budget=budget)
        return known[key]

    return make


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    def write(*case):
        path = tmp_path_factory.mktemp("graph") / "a-graph.json"
        return json.loads(made(*case).save(path, format="neuronpedia").read_text())

    return write


@pytest.mark.parametrize("case", CASES, ids=_named)
def test_the_schema_and_what_trips_pages(written, case):
    _check(written(*case))


def test_the_real_model(smollm_twin):
    """Fourteen tokens, two, and one."""
    for prompt, target in ((IOI, (" Mary", " John")), ("Hello world", " Mary"), ("Hello", " Mary")):
        graph = ah.graph(smollm_twin, prompt, target, budget=40)
        file = as_neuronpedia(graph, "smollm2")
        _check(file)
        assert "".join(file["metadata"]["prompt_tokens"]) == prompt
    assert any("qk_tracing_results" in node for node in file["nodes"]) or not any(n.kind == "A" for n in graph.parts)


def test_parts_in_the_first_layer_only(tiny):
    """Pages look for a layer above 0."""
    twin = ah.convert(tiny("llama", num_hidden_layers=1))
    graph = ah.graph(twin, torch.tensor([1, 2, 3]), 7, budget=10)
    assert {node.layer for node in graph.parts} == {0}
    _check(as_neuronpedia(graph, "one-layer"))


def _check(file):
    jsonschema.Draft7Validator(SCHEMA).validate(file)
    nodes, tokens = file["nodes"], file["metadata"]["prompt_tokens"]
    by_id = {node["node_id"]: node for node in nodes}
    assert len(by_id) == len(nodes)
    # Two nodes of one layer, feature and position would be one to a page: so for a head and a neuron of one number.
    assert max(Counter((node["layer"], node["feature"], node["ctx_idx"]) for node in nodes).values()) == 1
    assert all(0 <= node["ctx_idx"] < len(tokens) for node in nodes)
    # A page reads the probability out of the logit's text, and looks for a layer above 0.
    (logit,) = (node for node in nodes if node["feature_type"] == "logit")
    assert float(re.search(r"\(p=([\d.]+)\)", logit["clerp"])[1]) == pytest.approx(logit["token_prob"], abs=6e-4)
    layers = [int(node["layer"]) for node in nodes if node["feature_type"] not in ("logit", "embedding")]
    assert 1 <= max(layers) < int(logit["layer"])
    for node in nodes:
        if node["feature_type"] == "cross layer transcoder":  # others take the name apart
            layer, index, position = map(int, node["node_id"].split("_"))
            assert (str(layer), cantor(layer, index), position) == (node["layer"], node["feature"], node["ctx_idx"])
        if node["feature_type"] == "embedding":
            assert node["node_id"].startswith("E_") and node["layer"] == "E" and node["feature"] == node["ctx_idx"]
    # Links are known by their ends, so no two have the same.
    ends = Counter((link["source"], link["target"]) for link in file["links"])
    assert max(ends.values()) == 1 and set(by_id).issuperset(end for pair in ends for end in pair)
    known = {*by_id, *file["qk_only_nodes"]}
    for node in nodes:
        for share in (share for some in node.get("qk_tracing_results", {}).values() for share in some):
            assert known.issuperset(share[:-1])


@pytest.mark.parametrize("case", CASES, ids=_named)
def test_links_and_what_is_left_out_sum_to_effects(made, written, case):
    graph, file = made(*case), written(*case)
    into = Counter()
    for link in file["links"]:
        into[link["target"]] += link["weight"]
    scale = max(abs(node.effect) for node in graph.nodes)
    ours = {node["node_id"]: node["allheads"] for node in file["nodes"] if "allheads" in node}
    assert len(ours) == len([node for node in graph.nodes if node.kind != "C"])
    for name, node in ours.items():
        if node["kind"] in "TAXN":
            assert into[name] + node["inflow"]["V"]["left_out"] == pytest.approx(node["effect"], abs=1e-9 * scale)


@pytest.mark.parametrize("case", CASES, ids=_named)
def test_nothing_is_lost_on_the_way_back(made, case, tmp_path):
    graph = made(*case)
    part = graph.parts[0].name
    graph = replace(graph, marks=Marks([part, "target"], {"a group": [part, graph.parts[1].name]}, {part: "a note"}))
    path = graph.save(tmp_path / "graph.json", format="neuronpedia")
    read = AttributionGraph.load(path)
    assert read == graph and read.question is None
    less = graph.pruned(0.5)
    assert len(less.nodes) < len(graph.nodes)
    assert AttributionGraph.load(less.save(path, format="neuronpedia")) == less
    graph.save(path, format="neuronpedia")
    assert AttributionGraph.load(graph.save(tmp_path / "own.json")) == graph
    # What a page saves are pins and groups.
    file = json.loads(path.read_text())
    file["qParams"] |= {"pinnedIds": file["qParams"]["pinnedIds"][1:], "supernodes": []}
    path.write_text(json.dumps(file))
    assert AttributionGraph.load(path).marks == Marks(["target"], {}, {part: "a note"})


def test_probabilities_and_activations_are_the_models(made, written):
    graph = made("LlamaForCausalLM", PAIR, "half", 6)
    twin, inputs = graph.question.twin, graph.question.inputs
    with torch.no_grad():
        logits, cache = twin.run_with_cache(**inputs)
        shorter = twin(inputs["input"][:, :2])[0, -1]
    first, second = logits[0, -1, list(PAIR)].exp()
    file = written("LlamaForCausalLM", PAIR, "half", 6)
    nodes = {node["allheads"]["name"]: node for node in file["nodes"] if "allheads" in node}
    assert nodes["target"]["token_prob"] == pytest.approx(float(first / (first + second)), abs=1e-7)
    one = next(n for n in written("LlamaForCausalLM", 7, "half", 2)["nodes"] if n["feature_type"] == "logit")
    assert one["token_prob"] == pytest.approx(float(shorter.softmax(-1)[7]), abs=1e-7)
    neurons = [node for node in graph.nodes if node.kind == "N"]
    assert len(neurons) > 5
    for node in neurons:
        label = ah.Label.parse(node.label)
        expected = float(cache[f"blocks.{label.layer}.mlp.hook_post"][0, node.position, label.index])
        # With all hook points watched, heads are evaluated one by one, and not in closed form.
        assert nodes[node.name]["activation"] == pytest.approx(expected, rel=1e-5)


def test_an_error_of_another_tool_is_left_out(tmp_path):
    """Weights are a source's activation times the derivative of what the target reads, as circuit-tracer's are."""
    kinds = {"E_5_0": "embedding", "0_3_0": "cross layer transcoder", "1_4_1": "cross layer transcoder"}
    kinds |= {"0_0_1": "mlp reconstruction error", "2_7_1": "logit", "2_8_1": "logit"}
    nodes = [
        {"node_id": name, "feature": 0, "layer": name.split("_")[0], "ctx_idx": int(name[-1]), "feature_type": kind}
        | {"jsNodeId": name, "clerp": 'Output "x" (p=0.4)' if kind == "logit" else ""}
        for name, kind in kinds.items()
    ]
    nodes[4] |= {"token_prob": 0.4}
    nodes[1] |= {"activation": 4.0}
    weights = {("E_5_0", "0_3_0"): 3.0, ("0_3_0", "1_4_1"): 2.0, ("0_0_1", "1_4_1"): -1.0, ("1_4_1", "2_7_1"): 5.0}
    weights |= {("0_3_0", "2_7_1"): 0.5, ("0_3_0", "2_8_1"): 9.0}
    links = [{"source": source, "target": target, "weight": weight} for (source, target), weight in weights.items()]
    state = {"pinnedIds": "0_3_0,2_7_1", "supernodes": [["two", "0_3_0", "E_5_0"]], "linkType": "both"}
    file = {"metadata": {"slug": "s", "scan": "m", "prompt_tokens": ["a", "b"], "prompt": "ab"}, "qParams": state}
    path = tmp_path / "other.json"
    path.write_text(json.dumps(file | {"nodes": nodes, "links": links}))
    graph = AttributionGraph.load(path)
    effects = {node.name: node.effect for node in graph.nodes}
    # L1.N4 is given 2 - 1 = 1, and passes on 5; of that 10 come from L0.N3, -5 from the error.
    assert effects == pytest.approx(
        {"target": 5.5, "L1.N4@1": 5.0, "L0.N3@0": 10.5, "embed@0": 3.0 * 10.5 / 4.0}, abs=1e-12
    )
    assert graph["L1.N4@1"].inflow["V"].left_out == pytest.approx(-5.0)
    assert graph.marks.pins == ["L0.N3@0", "target"] and graph.marks.groups == {"two": ["L0.N3@0", "embed@0"]}
    assert "L1.N4" in ah.plots.graph(graph).save(tmp_path / "graph.html").read_text()


BROKEN = {
    "a newer version": (lambda file: file["metadata"].update(schema_version=2), "version 2"),
    "our newer version": (lambda file: _ours(file).update(version=2), "version 2"),
    "a node twice": (lambda file: file["nodes"].append(file["nodes"][1]), "two nodes called"),
    "a link to nowhere": (lambda file: file["links"][0].update(target="9_9_9"), "which is no node"),
    "a weight that is none": (lambda file: file["links"][0].update(weight="1"), "weight"),
    "without metadata": (lambda file: file["metadata"].pop("prompt_tokens"), "prompt_tokens"),
    "without a target": (lambda file: (file["nodes"].pop(0), _unlinked(file)), "no logit"),
    "a circle": (lambda file: file["links"].append(_back(file["links"][0])), "circle"),
}


def _ours(file):
    return file["metadata"]["generation_settings"]["allheads"]


def _unlinked(file):
    del file["metadata"]["generation_settings"]["allheads"]
    known = {node["node_id"] for node in file["nodes"]}
    file["links"] = [link for link in file["links"] if link["target"] in known]


def _back(link):
    return {"source": link["target"], "target": link["source"], "weight": 1.0}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_files_are_refused(written, tmp_path, how):
    file = written("LlamaForCausalLM", 7, "half", 2)
    damage, reason = BROKEN[how]
    if how == "a circle":
        del file["metadata"]["generation_settings"]["allheads"]
    damage(file)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(file))
    with pytest.raises(ah.AllHeadsError, match=reason):
        AttributionGraph.load(path)


def test_a_graph_from_a_file_is_not_written_for_others(made, tmp_path):
    read = AttributionGraph.load(made("LlamaForCausalLM").save(tmp_path / "own.json"))
    with pytest.raises(ah.AllHeadsError, match="knows its twin"):
        read.save(tmp_path / "other.json", format="neuronpedia")
    for path, kind in (("x.graphml", "neuronpedia"), ("x.json", "gexf")):
        with pytest.raises(ah.AllHeadsError, match="'neuronpedia' in a file"):
            read.save(tmp_path / path, format=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


def _linked_back(graph):
    edge = next(edge for edge in graph.edges if edge.source not in ("constants",))
    return replace(edge, source=edge.target, target=edge.source)


@pytest.mark.parametrize("form", ["allheads", "neuronpedia"])
def test_circles_and_edges_that_stand_twice_are_refused(made, tmp_path, form):
    graph = made("LlamaForCausalLM", 7, "half", 2)
    for edge, reason in ((_linked_back(graph), "circle"), (graph.edges[0], "two edges")):
        path = replace(graph, edges=[*graph.edges, edge]).save(tmp_path / "graph.json", format=form)
        with pytest.raises(ah.AllHeadsError, match=reason):
            AttributionGraph.load(path)


def test_a_node_without_what_we_wrote_of_it_is_refused(written, tmp_path):
    file = written("LlamaForCausalLM", 7, "half", 2)
    del next(node for node in file["nodes"] if node["feature_type"] == "cross layer transcoder")["allheads"]
    path = tmp_path / "stripped.json"
    path.write_text(json.dumps(file))
    with pytest.raises(ah.AllHeadsError, match="without what allheads has written"):
        AttributionGraph.load(path)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_our_file_as_another_tools(made, written, tmp_path, name):
    """Without our own keys it is a graph of somebody's, whose effects are those of its edges."""
    file = written(name, PAIR, "half", 6)
    del file["metadata"]["generation_settings"]["allheads"]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(file))
    read = AttributionGraph.load(path)
    assert {node.kind for node in read.nodes} == {node.kind for node in made(name, PAIR, "half", 6).nodes}
    scale = max(abs(node.effect) for node in read.nodes)
    for node in read.nodes[1:]:
        assert sum(edge.weight for edge in read.out_of(node.name)) == pytest.approx(node.effect, abs=1e-9 * scale)
    assert read.nodes[0].layer > max(node.layer for node in read.parts)


def test_streams_without_tokens_have_columns_of_their_own():
    sample = zoo.build("LlavaForConditionalGeneration", dtype=torch.float64)
    twin = ah.convert(sample.bridge)
    graph = ah.graph(twin, sample.inputs, 7, budget=40)
    file = as_neuronpedia(graph, "llava")
    places = {}
    for node in file["nodes"]:
        if "allheads" in node and node["feature_type"] != "logit":
            label = node["allheads"]["label"]
            stream = label if node["layer"] == "E" else label.partition("L")[0]
            places.setdefault(node["ctx_idx"], set()).add(stream.partition(".")[0])
    assert all(len({name for name in streams if name in ("P", "V", "")}) <= 1 for streams in places.values())
