"""Edges sum to effects, on both ends; graphs hide nothing; interventions in the held twin do what they say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import allheads as ah
from allheads.attribution import graph_builder as growing
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.edges import edges
from allheads.attribution.question import Question
from allheads.attribution.rules import RULES
from allheads_labs import zoo

FAMILIES = ["LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM", "BloomForCausalLM", "GPTNeoXForCausalLM"]
NORMS_AFTER = ["Olmo2ForCausalLM", "Gemma2ForCausalLM", "BertForMaskedLM"]


@pytest.fixture(scope="module")
def twins():
    made = {}

    def make(name):
        if name not in made:
            sample = zoo.build(name, dtype=torch.float64)
            made[name] = ah.convert(sample.bridge), sample.inputs["input"][:, :6]
        return made[name]

    return make


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, rule) for name in FAMILIES + NORMS_AFTER for rule in ("value", "relp")),
        *(("LlamaForCausalLM", rule) for rule in ("gate", "half", "live")),
    ],
)
def test_edges_sum_to_effects_on_both_ends(twins, name, rule):
    """Into every part, constants included; and out of every part, with what goes straight into the target."""
    twin, ids = twins(name)
    found = ah.attribute(twin, ids, 7, rule=rule)
    with edges(Question.of(twin, ids, 7, rule, -1)) as flows:
        target, pos = flows.into_target(), ids.shape[1]
        out = {name: torch.zeros_like(effects) for name, effects in found.effects.items()}
        begun = {name: torch.zeros_like(effects) for name, effects in flows.embeddings.items()}
        constants = 0.0

        def count(flow):
            for sums, parts in ((out, flow.parts), (begun, flow.embeddings)):
                for name, part in parts.items():
                    sums[name][(flow.at,) if sums is begun or name.endswith("N") else (slice(None), flow.at)] += part
            return flow.constants

        constants += count(target)
        for name_, direct in found.direct.items():
            assert torch.allclose(target.parts[name_], direct, atol=1e-12)
        for site in flows.cut.sites:
            everything = list(itertools.product(range(site.count), range(pos)))
            for _, (index, position), sides in flows.into({site: everything}):
                assert [flow.side for flow in sides] in (["V"], ["V", "Q", "K"])
                for flow in sides:
                    parts = sum(float(part.sum()) for part in (*flow.parts.values(), *flow.embeddings.values()))
                    assert parts + flow.constants == pytest.approx(flow.total, abs=1e-12)
                    constants += count(flow)
                effects = found.effects[site.name].T if site.kind == "N" else found.effects[site.name]
                assert sides[0].total == pytest.approx(float(effects[index, position]), abs=1e-12)
        for name_, effects in found.effects.items():
            assert torch.allclose(out[name_], effects, atol=1e-12)
        for name_, effects in flows.embeddings.items():
            assert torch.allclose(begun[name_], effects, atol=1e-12)
        # What is not linear at the end of the network is among the target's constants here.
        if RULES[rule].complete or name not in ("Gemma2ForCausalLM", "BertForMaskedLM"):
            rounding = sum(abs(effect) for effect, _ in found.constants.values())
            allowed = 1e-11 + (rounding if name == "Olmo2ForCausalLM" else 0.0)  # whose norms come after, inside layers
            assert allowed < 1e-6
            assert constants - found.intercept == pytest.approx(flows.constants, abs=allowed)
    begun = found.embeddings + (0.0 if found.positions is None else found.positions)
    if name != "BertForMaskedLM":  # types of segments are among its constants there, and embeddings here
        assert torch.allclose(flows.embeddings["embed"], begun, atol=1e-12)


def test_queries_and_keys_have_edges_where_patterns_are_not_held(twins):
    """Both sides of a score sum to the same; without them, effects are those of the held patterns."""
    twin, ids = twins("LlamaForCausalLM")
    with edges(Question.of(twin, ids, 7, "live", -1)) as flows:
        (site,) = (site for site in flows.cut.sites if site.name == "L1.A")
        for _, _, (value, query, key) in flows.into({site: [(0, 5), (3, 5)]}):
            assert query.total == pytest.approx(key.total, abs=1e-12)
            assert query.total != pytest.approx(0.0, abs=1e-6)
            assert value.total != pytest.approx(query.total, abs=1e-6)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel"])
@pytest.mark.parametrize("rule", ["value", "live"])
def test_nothing_is_hidden(twins, name, rule):
    twin, ids = twins(name)
    found = ah.graph(twin, ids, 7, rule=rule, budget=20)
    every = ah.attribute(twin, ids, 7, rule=rule)
    assert len(found.parts) == 20
    names = {node.name for node in found.nodes}
    assert all({edge.source, edge.target} <= names for edge in found.edges)
    for node in found.nodes:
        for side, flow in node.inflow.items():
            kept = sum(edge.weight for edge in found.into(node.name) if edge.side == side)
            assert flow.kept == pytest.approx(kept, abs=1e-12)
            assert flow.kept + flow.left_out == pytest.approx(flow.total, abs=1e-12)
            assert flow.left_out_size >= abs(flow.left_out) - 1e-9
        if node.kind in "AN":
            assert node.effect == pytest.approx(every.of(node.label)[node.position].effect, abs=1e-12)
            assert node.effect == pytest.approx(node.inflow["V"].total)
    assert 0.0 < found.coverage < 1.0


def test_a_whole_graph_leaves_nothing_out(twins, monkeypatch):
    twin, ids = twins("LlamaForCausalLM")
    monkeypatch.setattr(growing, "_EDGES", 10**6)
    found = ah.graph(twin, ids, 7, budget=10**6)
    assert found.coverage == pytest.approx(1.0)
    for node in found.nodes:
        for flow in node.inflow.values():
            assert flow.left_out == pytest.approx(0.0, abs=1e-12)
        flows_out = sum(edge.weight for edge in found.out_of(node.name))
        if node.kind != "T":
            assert flows_out == pytest.approx(node.effect, abs=1e-11)
    ends = sum(node.effect for node in found.nodes if node.kind in "EC")
    assert ends == pytest.approx(found.target_value, abs=1e-11)


def test_growth_is_by_size_and_stops(twins):
    twin, ids = twins("LlamaForCausalLM")
    direct = ah.attribute(twin, ids, 7)
    first = ah.graph(twin, ids, 7, budget=1)
    largest = max(direct.heads_direct.abs().max(), direct.neurons_direct.abs().max())
    assert abs(first.into("target")[0].weight) == pytest.approx(float(largest))
    small, large = ah.graph(twin, ids, 7, budget=32), ah.graph(twin, ids, 7, budget=64)
    assert {node.name for node in small.parts} < {node.name for node in large.parts}
    assert small.coverage < large.coverage
    some = direct.graph(budget=10**6, coverage=0.5)
    assert 0.5 <= some.coverage < 0.9


def test_growth_is_greedy(twins, monkeypatch):
    """One by one, always the part that writes most into all that is there: by hand, on the whole graph's edges."""
    twin, ids = twins("LlamaForCausalLM")
    monkeypatch.setattr(growing, "_EDGES", 10**6)
    whole = ah.graph(twin, ids, 7, rule="live", budget=10**6)
    monkeypatch.setattr("allheads.attribution.graph._ROUND", 1)
    found = ah.graph(twin, ids, 7, rule="live", budget=25)
    parts = {node.name for node in whole.parts}
    kept = ["target"]
    for _ in range(25):
        written = dict.fromkeys(parts - set(kept), 0.0)
        for edge in whole.edges:
            if edge.target in kept and edge.source in written:
                written[edge.source] += edge.weight
        kept.append(max(written, key=lambda name: abs(written[name])))
    assert [node.name for node in found.nodes[:26]] == kept


def test_files(twins, tmp_path):
    import networkx

    twin, ids = twins("LlamaForCausalLM")
    found = ah.graph(twin, ids, (7, 3), rule="relp", budget=12)
    assert AttributionGraph.load(found.save(tmp_path / "graph.json")) == found
    read = networkx.read_graphml(found.save(tmp_path / "graph.graphml"), force_multigraph=True)
    assert set(read.nodes) == {node.name for node in found.nodes}
    assert read.number_of_edges() == len(found.edges)
    for edge in found.edges:
        assert read.edges[edge.source, edge.target, edge.side]["weight"] == pytest.approx(edge.weight)
    assert read.nodes["target"]["label"] == found.target
    for text in ("", "[]", '{"format": 2}', (tmp_path / "graph.json").read_text()[:-50]):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ah.AllHeadsError, match=r"a graph that AttributionGraph\.save wrote"):
            AttributionGraph.load(tmp_path / "broken.json")
    with pytest.raises(ah.AllHeadsError, match=r"ends in \.json or \.graphml, got graph\.pickle"):
        found.save(tmp_path / "graph.pickle")


@pytest.mark.parametrize("name", [*FAMILIES, "Olmo2ForCausalLM"])
def test_predictions_come_true_in_the_held_twin(twins, name):
    twin, ids = twins(name)
    for rule in ("value", "half"):
        found = ah.graph(twin, ids, (7, 3), rule=rule, budget=40).confirm(40)
        assert len(found.names) == 40
        assert found.frozen_error < 1e-8
        assert not torch.allclose(found.live, found.predicted, rtol=1e-3)


def test_the_live_twin_is_what_ablation_gives(twins):
    twin, ids = twins("LlamaForCausalLM")
    made = ah.attribute(twin, ids, 7, rule="relp")
    found = made.confirm(10)
    assert found.frozen is None
    assert math.isnan(found.frozen_error)
    with torch.no_grad():
        own = float(twin(ids)[0, -1, 7])
    for each, live in zip(made.top(10), found.live.tolist(), strict=True):
        with ah.ablate(twin, [each.label], positions=[each.position]), torch.no_grad():
            assert own - float(twin(ids)[0, -1, 7]) == pytest.approx(live, abs=1e-12)
    frame = found.to_dataframe()
    assert frame.name[0] == f"{made.top(1)[0].label}@{made.top(1)[0].position}"
    r = torch.corrcoef(torch.tensor(frame[["predicted", "live"]].to_numpy().T))[0, 1]
    assert found.correlation == pytest.approx(float(r))
    assert f"correlation {found.correlation:.2f}" in str(found)


def test_what_cannot_be_graphed(twins, tmp_path):
    twin, ids = twins("LlamaForCausalLM")
    made = ah.graph(twin, ids, 7, budget=2)
    cases = {
        "a rule that freezes norms and gates, got 'gradient'": lambda: ah.graph(twin, ids, 7, rule="gradient"),
        "a budget from 1": lambda: ah.graph(twin, ids, 7, budget=0),
        r"a coverage in \(0, 1\]": lambda: ah.attribute(twin, ids, 7).graph(coverage=1.5),
        "a node of this graph": lambda: made["L0.A0@77"],
        "an attention-only twin": lambda: ah.graph(zoo.build("LlamaForCausalLM").bridge, ids, 7),
    }
    for message, call in cases.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    read = AttributionGraph.load(made.save(tmp_path / "graph.json"))
    with pytest.raises(ah.AllHeadsError, match="a graph that knows its twin, got one read from a file"):
        read.confirm()
    bank = ah.convert(zoo.build("LlamaForCausalLM", dtype=torch.float64).bridge)
    edited = ah.attribute(bank, ids, 7, rule="relp")
    with bank.banks[1].edit() as heads:
        heads.W_O *= 2.0
    with pytest.raises(ah.AllHeadsError, match=r"a twin whose 7 is .*, as when it was asked"):
        edited.confirm()
    with torch.inference_mode(), pytest.raises(ah.AllHeadsError, match="inference_mode"):
        ah.graph(twin, ids, 7)


@pytest.mark.parametrize("target", [lambda logits: logits[0] * torch.nan, lambda logits: logits[0] * torch.inf])
def test_targets_that_are_not_finite_are_refused(twins, target):
    twin, ids = twins("LlamaForCausalLM")
    with pytest.raises(ah.AllHeadsError, match="a target with a finite value"):
        ah.graph(twin, ids, target)


def test_what_mixes_positions_and_is_not_frozen_is_read_part_by_part():
    """Under rules that do not freeze patterns, gradients of a convolution come from other positions as well."""
    sample = zoo.build("Lfm2ForCausalLM", dtype=torch.float64)
    twin, ids = ah.convert(sample.bridge), sample.inputs["input"][:1, :6]
    with edges(Question.of(twin, ids, 7, "live", -1)) as flows:
        site = flows.cut.neurons[-1]
        together = {entry: sides for _, entry, sides in flows.into({site: [(0, at) for at in range(ids.shape[1])]})}
        for entry, sides in together.items():
            ((_, _, alone),) = flows.into({site: [entry]})
            for expected, found in zip(alone, sides, strict=True):
                for name, part in expected.parts.items():
                    assert torch.equal(found.parts[name], part)
        moved = [flow for sides in together.values() for flow in sides if flow.at == slice(None)]
        assert moved  # and so they are seen


def test_what_a_graph_cannot_see_is_refused(monkeypatch, twins):
    """An edge that is lost on the way is noticed: edges have to sum to what they flow into."""
    twin, ids = twins("LlamaForCausalLM")
    whole = growing.GraphBuilder.read

    def losing(self, node, sides):
        for flow in sides:
            part = next((part for part in flow.parts.values() if part.numel()), None)
            if node is not None and part is not None:
                part *= 0.5
        whole(self, node, sides)

    monkeypatch.setattr(growing.GraphBuilder, "read", losing)
    with pytest.raises(ah.AllHeadsError, match="edges that sum to what they flow into"):
        ah.graph(twin, ids, 7, budget=5)
