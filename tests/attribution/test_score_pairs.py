"""Why the heads of a graph attend: shares against `attribute_pattern`, pairs against products of vectors."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.attribution.metric import NOTHING
from allheads.attribution.question import Question
from allheads.attribution.rules import rule_named
from allheads.attribution.score_pairs import traced_scores
from allheads.models.attention import rotated
from allheads_labs import zoo

EVERYTHING = 10**6


def traced(name, heads, rule="half", k=EVERYTHING):
    sample = zoo.build(name, dtype=torch.float64)
    twin = ah.convert(sample.bridge)
    inputs = {given: value[:1, :6] for given, value in sample.inputs.items()}
    question = Question(twin, inputs, NOTHING, rule_named(rule))
    found, silent = traced_scores(question, [(ah.Label.parse(label), at) for label, at in heads], k)
    return twin, inputs, found, silent


FAMILIES = ["LlamaForCausalLM", "GPT2LMHeadModel", "Gemma2ForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM"]


@pytest.mark.parametrize("name", FAMILIES)
def test_shares_are_those_of_attribute_pattern(name):
    """Which gets them by another way: a gradient of the whole network that goes back into no part."""
    twin, inputs, found, silent = traced(name, [("L1.A0", 5), ("L1.A3", 4)])
    assert not silent and len(found) == 2
    for head, score in found.items():
        why = ah.attribute_pattern(twin, inputs, head, score.source)
        assert score.score == pytest.approx(why.score, abs=1e-9)
        for shares, side in ((score.query, why.query), (score.key, why.key)):
            direct = {f"{part.label}@{part.position}": part.direct for part in side}
            assert len(shares) > 20
            for node, share in shares.items():
                if not node.startswith("embed"):
                    assert share == pytest.approx(direct[node], abs=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_sum_to_shares(name):
    """Over all keys, what a part of the query makes with each is what it makes with their sum."""
    twin, _, found, _ = traced(name, [("L1.A0", 5)])
    (score,) = found.values()
    without = score.score - sum(score.query.values())
    biases = any("bias" in weight for weight, _ in twin.named_parameters())
    for part, share in score.query.items():
        pairs = sum(value for (query, _), value in score.pairs.items() if query == part)
        if not biases:  # keys are then sums of what parts write, and nothing else
            assert pairs == pytest.approx(share, abs=1e-6)  # norms compute in float32, and round
    assert biases or abs(without) < (1e-4 if name.startswith("Gemma2") else 1e-6)  # a cap is not linear


def test_a_pair_is_the_product_of_what_two_embeddings_write():
    """By hand: scaled by the norm as it is there, through W_Q and W_K, turned by their positions."""
    twin, inputs, found, _ = traced("LlamaForCausalLM", [("L1.A0", 5)])
    (score,) = found.values()
    head, norm = twin.head("L1.A0"), twin.original_model.model.layers[1].input_layernorm
    with torch.no_grad():
        _, cache = twin.run_with_cache(**inputs)
        stream = cache["blocks.1.hook_resid_pre"][0]
        scale = (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight
        written = cache["embed.hook_out"][0] * scale
        query, key = written[5] @ head.W_Q, written[score.source] @ head.W_K
        read = ah.weights.read_wiring(twin).branches["L1.A"].attention
        offset = rotated((query)[None], [5 - score.source], rotary=read.rotary, interleaved=read.interleaved)
        expected = float(offset[0] @ key) * len(query) ** -0.5
    assert score.pairs["embed@5", f"embed@{score.source}"] == pytest.approx(expected, abs=1e-9)


def test_encoders_and_layers_that_show_nothing():
    _, _, found, silent = traced("T5ForConditionalGeneration", [("DL1.X0", 2), ("EL1.A0", 5)])
    assert not silent
    across = found["DL1.X0@2"]
    assert all(node.startswith(("DL", "decoder_embed")) for node in across.query)
    assert all(node.startswith(("EL", "encoder_blocks")) for node in across.key)
    assert across.pairs


def test_the_rule_does_not_matter_where_norms_are_frozen():
    scores = [next(iter(traced("LlamaForCausalLM", [("L1.A2", 3)], rule, 4)[2].values())) for rule in ("half", "relp")]
    assert scores[0].query == pytest.approx(scores[1].query, abs=1e-12)
    assert len(scores[0].query) == len(scores[0].pairs) == 4
