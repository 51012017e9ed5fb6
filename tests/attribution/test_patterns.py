"""Scores and preactivations split without remainder, and the split predicts interventions."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import zoo

FAMILIES = [
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "OPTForCausalLM",  # shows its patterns where scores should be
    "BloomForCausalLM",  # a bias for distance
    "Olmo2ForCausalLM",  # norms on queries and keys
    "Gemma2ForCausalLM",  # capped scores
    "BertForMaskedLM",
]
NOT_LINEAR = {"BloomForCausalLM", "Gemma2ForCausalLM"}


@pytest.fixture(scope="module")
def twins():
    made = {}

    def make(name):
        if name not in made:
            sample = zoo.build(name, dtype=torch.float64)
            made[name] = ah.convert(sample.bridge), sample.inputs["input"]
        return made[name]

    return make


def _cache(twin, ids, *names):
    with torch.no_grad():
        return [twin.run_with_cache(ids, names_filter=list(names))[1][name][0] for name in names]


@pytest.mark.parametrize("name", FAMILIES)
def test_preactivations(twins, name):
    twin, ids = twins(name)
    why = ah.attribute_pattern(twin, ids, "L1.N3@-2")
    (pre, gates) = _cache(twin, ids, "blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_pattern_self")
    at = ids.shape[1] - 2
    assert why.score == pytest.approx(float(pre[at, 3]), abs=1e-6)  # some norms work in float32
    assert why.query.completeness_error < 1e-12
    assert why.query.intercept == 0.0
    assert all(why.query.cut(layer) == pytest.approx(why.score, abs=1e-11) for layer in (0, 1))
    d_mlp = twin.banks[1].d_mlp
    assert torch.equal(why.pattern, gates[3::d_mlp, at])
    assert (why.position, why.source, why.key, why.label) == (at, at, None, "L1.N3")
    assert not why.query.heads[:, :, at + 1 :].any() or name == "BertForMaskedLM"
    assert not why.query.neurons[1].any()  # a layer's neurons do not read each other
    one = ah.attribute_pattern(twin, ids, "L1.N3.0@-2")
    assert one.label == "L1.N3.0"
    assert one.pattern.tolist() == pytest.approx([float(why.pattern[0])])


def test_scores_without_a_scale(twins):
    twin, ids = twins("GPTNeoForCausalLM")
    why = ah.attribute_pattern(twin, ids, "L0.A3", (1, 2))
    (pattern,) = _cache(twin, ids, "blocks.0.attn.hook_pattern")
    assert why.score == pytest.approx(float(pattern[3, -1, 1].log() - pattern[3, -1, 2].log()), abs=1e-5)
    assert why.query.total == pytest.approx(why.score, abs=1e-11)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores(twins, name):
    twin, ids = twins(name)
    why = ah.attribute_pattern(twin, ids, "L1.A3@-2", (1, 2))
    (pattern,) = _cache(twin, ids, "blocks.1.attn.hook_pattern")
    at = ids.shape[1] - 2
    # A pattern is a softmax: differences of scores are differences of logs.
    odds = float(pattern[3, at, 1].log() - pattern[3, at, 2].log())
    assert why.score == pytest.approx(odds, abs=1e-5)
    assert float(why.pattern) == pytest.approx(float(pattern[3, at, 1]), abs=1e-9)
    for side in (why.query, why.key, why.key_versus):
        assert side.completeness_error < 1e-12
        assert abs(side.total - side.target_value) < 1e-11
        assert (side.intercept != 0.0) == (name in NOT_LINEAR)
    assert why.key.total - why.key_versus.total == pytest.approx(why.score, abs=1e-11)
    assert not torch.allclose(why.query.embeddings, why.key.embeddings, atol=1e-6)
    most = ah.attribute_pattern(twin, ids, "L1.A3@-2")
    assert most.source == int(pattern[3, at].argmax())
    assert most.key_versus is None
    assert most.query.total == pytest.approx(most.key.total, abs=1e-11)


def test_each_side_predicts_interventions(twins):
    """With the key held and norms frozen, taking a neuron away changes the score by what the query side says."""
    twin, ids = twins("LlamaForCausalLM")
    at = ids.shape[1] - 1
    why = ah.attribute_pattern(twin, ids, "L1.A3", 1, rule="value")
    points = [f"blocks.{layer}.attn.hook_{name}" for layer in (0, 1) for name in "qk"]
    for letter, side in (("q", why.query), ("k", why.key)):
        held = dict(zip(points, _cache(twin, ids, *points), strict=True))
        del held[f"blocks.1.attn.hook_{letter}"]

        def holder(name, held=held):
            return lambda value, hook: held[name].expand_as(value)

        from allheads.attribution.freezing import freezing
        from allheads.attribution.rules import RULES

        scores = []
        with torch.no_grad(), freezing(twin, RULES["value"], (f"blocks.1.attn.hook_{letter}",)):
            twin(ids)
            for label in (None, "L0.N3", "L0.A1"):
                with ah.ablate(twin, [] if label is None else [label]):
                    scores.append(float(_cache(twin, ids, "blocks.1.attn.hook_attn_scores")[0][3, at, 1]))
        for label, score in zip(("L0.N3", "L0.A1"), scores[1:], strict=True):
            effect = sum(each.effect for each in side.of(label))
            assert effect != 0.0
            assert scores[0] - score == pytest.approx(effect, abs=1e-11)


def test_relative_to_means(twins):
    twin, ids = twins("LlamaForCausalLM")
    means = ah.corpus.means(twin, [ids])
    plain = ah.attribute_pattern(twin, ids, "L1.N3@4")
    relative = plain.relative_to(means)
    assert relative.query.total == pytest.approx(plain.score, abs=1e-11)
    assert relative.query.baseline != 0.0
    assert not torch.allclose(relative.query.heads, plain.query.heads)


def test_what_has_no_cause(twins):
    twin, ids = twins("LlamaForCausalLM")
    cases = {
        "a head of this twin": lambda: ah.attribute_pattern(twin, ids, "L7.A1@3"),
        "a position from": lambda: ah.attribute_pattern(twin, ids, "L1.A1@99"),
        "different sources that L1.A1 sees from 3, got 5": lambda: ah.attribute_pattern(twin, ids, "L1.A1@3", 5),
        "different sources": lambda: ah.attribute_pattern(twin, ids, "L1.A1@3", (1, 1)),
        "a neuron without a source": lambda: ah.attribute_pattern(twin, ids, "L1.N1@3", 1),
        "a rule that freezes everything, got 'live'": lambda: ah.attribute_pattern(twin, ids, "L1.N1", rule="live"),
        "a head and a position, such as": lambda: ah.attribute_pattern(twin, ids, "L1.N1@x"),
    }
    for message, call in cases.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
