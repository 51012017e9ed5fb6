"""The explorer holds what the model predicts, what attribution says of it, and every gate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import allheads as ah
from allheads.errors import AllHeadsError
from allheads.plots import explorer
from allheads.plots.packing import unpack
from allheads_labs import zoo


@pytest.fixture(scope="module")
def data(twin, ids):
    return ah.plots.explore(twin, ids, budget=12, position=-2).data


def test_predictions_are_the_models(data, twin, ids):
    with torch.no_grad():
        shares = twin(ids)[0].softmax(-1)
    for at, found in enumerate(data["predictions"]):
        assert [share for _, share in found["offered"]] == pytest.approx(shares[at].topk(5).values.tolist(), abs=1e-4)


def test_every_prediction_is_what_attribute_says(data, twin, ids):
    """The network looks back only: what follows a prediction changes nothing but rounding."""
    for at in (0, 7, 17, 22):
        with torch.no_grad():
            first, second = twin(ids)[0, at].topk(2).indices.tolist()
        found = ah.attribute(twin, ids, (first, second), position=at)
        shown = data["predictions"][at]
        assert shown["value"] == pytest.approx(found.target_value, rel=1e-3)
        assert shown["tokens"] == pytest.approx(found.embeddings[: at + 1].tolist(), rel=1e-2, abs=1e-4)
        parts = {(label, place): (effect, direct) for label, place, effect, direct in shown["parts"]}
        for each in found.top(20):
            assert parts[each.label, each.position] == pytest.approx((each.effect, each.direct), rel=1e-2, abs=1e-5)
        assert sum(shown["tokens"]) + shown["constants"] == pytest.approx(shown["value"], abs=5e-3)


def test_predictions_are_compared_with_a_token_that_is_named(twin, ids):
    with torch.no_grad():
        likeliest = twin(ids)[0].argmax(-1)
    other = int(likeliest[5])
    shown = ah.plots.explore(twin, ids, versus=other, budget=2).data["predictions"]
    for at in (5, 9):  # at 5 it is the likeliest itself, and is compared with the second
        with torch.no_grad():
            first, second = twin(ids)[0, at].topk(2).indices.tolist()
        rival = second if at == 5 else other
        assert first != rival
        expected = ah.attribute(twin, ids, (first, rival), position=at).target_value
        assert shown[at]["value"] == pytest.approx(expected, rel=1e-3)


def test_the_graph_is_of_the_prediction_asked_for(data, twin, ids):
    assert data["graph"]["position"] == data["opened"] == 21
    assert data["graph"]["value"] == pytest.approx(data["predictions"][21]["value"], rel=1e-3)
    assert sum(node["kind"] in "AN" for node in data["graph"]["nodes"]) == 12


def test_every_neuron_has_its_gate_and_the_largest_parts_have_cards(data, twin, ids, cache):
    for layer, bank in enumerate(twin.banks):
        gate = cache[f"blocks.{layer}.mlp.hook_pattern_self"][0, bank.d_mlp :]
        assert np.abs(unpack(data["gates"][layer]) / 255 - gate.numpy()).max() <= 0.002
        assert data["d_mlp"][layer] == bank.d_mlp
    for found in data["predictions"]:
        assert {part[0] for part in found["parts"][:40]} <= set(data["cards"])
    assert {head["label"] for head in data["heads"] if head["kind"] == "A"} == {
        f"L{layer}.A{head}" for layer in range(3) for head in range(4)
    }


def test_of_a_long_text_the_last_predictions_are_explained(twin, ids, monkeypatch):
    monkeypatch.setattr(explorer, "EXPLAINED", 6)
    predictions = ah.plots.explore(twin, ids, budget=5).data["predictions"]
    assert ["parts" in found for found in predictions] == [False] * 17 + [True] * 6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda twin, ids: ah.plots.explore(twin, ids, position=40), "a position from -23 to 22"),
        (lambda twin, ids: ah.plots.explore(twin, ids, rule="magic"), "magic"),
        (lambda twin, ids: ah.plots.explore(twin, ids, rule="gradient"), "a rule that freezes norms and gates"),
        (lambda twin, ids: ah.plots.explore(twin, ids, budget=0), "a budget from 1"),
        (lambda twin, ids: ah.plots.explore(twin, ids[:, :0]), "at least one token"),
    ],
)
def test_requests_that_make_no_sense(twin, ids, call, words):
    with pytest.raises(AllHeadsError, match=words):
        call(twin, ids)


def test_texts_beyond_the_limit(twin, ids, monkeypatch):
    monkeypatch.setattr(explorer, "LONGEST", 20)
    with pytest.raises(AllHeadsError, match="a text of at most 20 tokens, got 23"):
        ah.plots.explore(twin, ids)


def test_a_network_that_looks_ahead(twin, ids, monkeypatch):
    """Its first logits change with what follows."""
    original = type(twin).forward
    monkeypatch.setattr(type(twin), "forward", lambda self, ids, **named: original(self, ids.flip(1), **named))
    with pytest.raises(AllHeadsError, match="a model that reads from left to right"):
        ah.plots.explore(twin, ids)


def test_a_mixture_of_experts_is_explored_and_an_encoder_is_not():
    sample = zoo.build("Qwen2MoeForCausalLM")
    page = ah.plots.explore(ah.convert(sample.bridge), sample.inputs["input"], budget=20)
    experts = [label for label in page.data["cards"] if ".M" in label]
    assert experts and all(page.data["cards"][label]["promotes"] for label in experts)
    # Layer 0 has one MLP, whose neurons have gates on this page; layer 1 has experts.
    assert page.data["gates"][0] is not None and page.data["gates"][1] is None and page.data["d_mlp"][1] == 0
    other = zoo.build("BartForConditionalGeneration")
    with pytest.raises(ah.AllHeadsError, match=r"Use ah\.attribute and ah\.plots\.graph"):
        ah.plots.explore(ah.convert(other.bridge), other.inputs)
