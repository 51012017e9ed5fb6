"""Attribution on real weights: completeness, and the figures of the indirect object."""

from __future__ import annotations

import pytest
import torch

import allheads as ah

PROMPT = "When Mary and John went to the store, John gave a drink to"
PAIR = (" Mary", " John")
#: What the second " John" is worth, by who gets the credit of a gated neuron; the whole is 6.1196 for all.
SECOND_JOHN = {"value": 2.39, "gate": 1.25, "half": 1.65}


@pytest.fixture(scope="module")
def twin(smollm_twin):
    return smollm_twin


@pytest.mark.parametrize("rule", SECOND_JOHN)
def test_the_indirect_object(twin, rule):
    found = ah.attribute(twin, PROMPT, PAIR, rule=rule)
    assert found.target.name == "' Mary' - ' John'"
    assert found.target_value == pytest.approx(6.1196, abs=1e-3)
    assert found.total == pytest.approx(found.target_value, abs=1e-4)
    assert found.completeness_error < 1e-5
    places = [position for position, token in enumerate(found.tokens) if token == " John"]
    assert float(found.embeddings[places[1]]) == pytest.approx(SECOND_JOHN[rule], abs=6e-3)
    assert found.heads.shape == (30, 9, 14)
    assert found.neurons.shape == (30, 14, 1536)


def test_float64_is_exact():
    twin = ah.convert(ah.load(dtype=torch.float64))
    for text in ("The capital of France is", PROMPT, PROMPT * 6):
        for rule in SECOND_JOHN:
            assert ah.attribute(twin, text, " Paris", rule=rule).completeness_error < 1e-12


def test_the_largest_head_moves_the_answer(twin):
    """The held twin predicts a change by ablation exactly, and the live twin agrees in sign and size."""
    found = ah.attribute(twin, PROMPT, PAIR)
    top = found.top(1, kind="A")[0]
    layer, head = (int(part[1:]) for part in top.label.split("."))

    def silence(z, hook):
        z = z.clone()
        z[:, top.position, head] = 0.0
        return z

    def difference():
        with torch.no_grad(), twin.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence)]):
            logits = twin(PROMPT)[0, -1]
        mary, john = (twin.tokenizer(word, add_special_tokens=False).input_ids[0] for word in PAIR)
        return float(logits[mary] - logits[john])

    with ah.frozen(twin, PROMPT):
        assert difference() - found.target_value == pytest.approx(-top.effect, abs=1e-3)
    live = difference() - found.target_value
    assert -2.0 * top.effect < live < -0.3 * top.effect


def test_words_that_are_no_single_token(twin):
    with pytest.raises(ah.AllHeadsError, match=r"one token, got ' antidisestablish', which is ' ant', '"):
        ah.attribute(twin, PROMPT, " antidisestablish")


def test_a_graph_of_the_indirect_object(twin):
    """Twenty parts, found backward from the answer; in the held twin each is worth what the graph says."""
    found = ah.graph(twin, PROMPT, PAIR, budget=20)
    assert found.into("target")[0].source == "L23.A3@13"
    assert len(found.parts) == 20
    confirmed = found.confirm()
    assert confirmed.frozen_error < 1e-4
    assert confirmed.correlation > 0.6
    assert found["target"].inflow["V"].total == pytest.approx(6.1196, abs=1e-3)


def test_why_a_name_mover_attends(twin):
    """The score of the largest head on the first name, over the second, splits to the last digit."""
    why = ah.attribute_pattern(twin, PROMPT, "L23.A3", (1, 3))
    pattern = twin.run_with_cache(PROMPT, names_filter=["blocks.23.attn.hook_pattern"])[1][
        "blocks.23.attn.hook_pattern"
    ]
    odds = float(pattern[0, 3, -1, 1].log() - pattern[0, 3, -1, 3].log())
    assert why.score == pytest.approx(odds, abs=1e-4)
    assert why.query.completeness_error < 1e-5
    assert why.query.total == pytest.approx(why.score, abs=1e-4)
