"""Scores and preactivations split without remainder, and the split predicts interventions."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.attribution.freezing import freezing
from allheads.attribution.rules import RULES
from allheads.twin.capture import capturing
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
#: No hook point has their scores: turned, normalised or scaled after queries and keys are shown.
SHOWN_NOWHERE = ["NanoChatForCausalLM", "GPTJForCausalLM", "Llama4ForCausalLM", "AfmoeForCausalLM", "LagunaForCausalLM"]
IN_FLOAT32 = {"GPTJForCausalLM", "Llama4ForCausalLM"}
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


@pytest.mark.parametrize("name", ["LlamaForCausalLM", *SHOWN_NOWHERE])
def test_each_side_predicts_interventions(twins, name):
    """With the key held and norms frozen, taking a part away changes the score by what the query side says.

    Scores are read from patterns here: their differences are those of logarithms.
    """
    twin, ids = twins(name)
    at = ids.shape[1] - 1
    why = ah.attribute_pattern(twin, ids, "L1.A3", (1, 2), rule="value")

    def odds():
        (pattern,) = _cache(twin, ids, "blocks.1.attn.hook_pattern")
        return float(pattern[3, at, 1].double().log() - pattern[3, at, 2].double().log())

    for letter in "qk":
        sides, found = ([why.query] if letter == "q" else [why.key, why.key_versus]), []
        with torch.no_grad(), freezing(twin, RULES["value"], (f"blocks.1.attn.hook_{letter}",)):
            whole = odds()
            for label in ("L0.N3", "L0.N5", "L0.A1"):
                with ah.ablate(twin, [label]):
                    change = whole - odds()
                effect, *other = (sum(part.effect for part in side.of(label)) for side in sides)
                assert change == pytest.approx(effect - sum(other), abs=3e-6)  # softmaxes work in float32
                found.append(abs(change))
        assert max(found) > 1e-3


@pytest.mark.parametrize("name", SHOWN_NOWHERE)
def test_scores_that_no_hook_point_shows(twins, name):
    twin, ids = twins(name)
    why = ah.attribute_pattern(twin, ids, "L1.A3@-2", (1, 2))
    (pattern,) = _cache(twin, ids, "blocks.1.attn.hook_pattern")
    at = ids.shape[1] - 2
    assert why.score == pytest.approx(float(pattern[3, at, 1].log() - pattern[3, at, 2].log()), abs=1e-5)
    close = 1e-11 if name not in IN_FLOAT32 else 1e-6
    assert why.query.total == pytest.approx(why.score, abs=close)
    assert why.key.total - why.key_versus.total == pytest.approx(why.score, abs=close)
    assert all(abs(side.intercept) < close for side in (why.query, why.key, why.key_versus))


def test_a_softmax_that_two_stacks_share():
    """A decoder's own tokens and those of the encoder are the sources of one softmax; its pattern shows the former."""
    sample = zoo.build("T5Gemma2ForConditionalGeneration", dtype=torch.float64)
    twin, name = ah.convert(sample.bridge), "decoder_blocks.1.self_attn.hook_pattern"
    why = ah.attribute_pattern(twin, sample.inputs, "DL1.A1", (1, 2))
    with capturing(twin, [name]) as activations, torch.no_grad():
        sample.run(twin)
    row = activations[name][0, 1, -1]
    assert float(row.sum()) < 0.99
    assert why.score == pytest.approx(float(row[1].log() - row[2].log()), abs=1e-5)
    assert why.query.total == pytest.approx(why.score, abs=1e-11)
    assert why.key.total - why.key_versus.total == pytest.approx(why.score, abs=1e-11)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("SwitchTransformersForConditionalGeneration", "something else"), ("LEDForConditionalGeneration", "none")],
)
def test_what_is_no_pattern_is_refused(name, shown):
    sample = zoo.build(name, dtype=torch.float64)
    with pytest.raises(ah.AllHeadsError, match=f"heads of {name} that show {shown}"):
        ah.attribute_pattern(ah.convert(sample.bridge), sample.inputs, "EL0.A1")


def test_scores_that_more_goes_into_than_their_sides_are_refused(twins, monkeypatch):
    """A query that passes its hook point and is then added to by the stream has no two sides to tell apart."""
    twin, ids = twins("NanoChatForCausalLM")
    component = twin.index.attention["L1", "A"].module
    read = []
    handles = [
        component.register_forward_pre_hook(lambda _, args, kw: read.append(kw["hidden_states"]), with_kwargs=True),
        component.q.register_forward_hook(lambda _, args, made: made + read[-1].mean(-1, keepdim=True)),
    ]
    try:
        with pytest.raises(ah.AllHeadsError, match="that more goes into"):
            ah.attribute_pattern(twin, ids, "L1.A3")
    finally:
        for handle in handles:
            handle.remove()


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
