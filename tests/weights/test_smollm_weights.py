"""Weights of the real SmolLM2: what they say is what the network then does."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.models.attention import rotated

TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def twin(smollm_twin):
    return smollm_twin


def _cached(twin, ids, name, hooks=()):
    with torch.no_grad(), twin.hooks(fwd_hooks=list(hooks)):
        return twin.run_with_cache(ids, names_filter=[name])[1][name]


def test_composition_predicts_an_intervention(twin):
    """Every pair; the first one in full matrices; and its neuron moves the scores of that head as no other does."""
    found = ah.weights.composition(twin, "neuron->Q", k=5)
    assert found.count == 435 * 1536 * 9
    assert found.chance_ratio == pytest.approx(1.0, abs=0.03)
    first = found.pairs[0]
    assert (first.writer, first.reader) == ("L16.N180", "L19.A0")
    attn = twin.blocks[19].attn
    gain = twin.blocks[19].ln1.original_component.weight.detach().double()
    W_QK = gain[:, None] * attn.W_Q[0].detach().double() @ attn.W_K[0].detach().double().T * gain
    W_out = twin.banks[16].W_out.detach()
    write = W_out[180].double()
    assert first.score == pytest.approx(float((write @ W_QK).norm() / write.norm() / W_QK.norm()), abs=1e-6)

    name = "blocks.19.attn.hook_attn_scores"
    before = _cached(twin, TEXT, name)

    def pushed(neuron):
        def push(post, hook):
            post = post.clone()
            post[..., neuron] += 2.0 / W_out[neuron].norm()
            return post

        return float((_cached(twin, TEXT, name, [("blocks.16.mlp.hook_post", push)]) - before)[0, 0].tril().norm())

    others = torch.randperm(1536, generator=torch.Generator().manual_seed(0))[:8].tolist()
    assert 180 not in others
    assert pushed(180) > 3 * max(pushed(neuron) for neuron in others)


def test_scores_of_the_first_layer(twin):
    """In layer 0 the stream is the embedding, and the attention score is the circuit's."""
    found = ah.weights.circuit(twin, "L0.A4")
    ids = twin.to_tokens(TEXT, prepend_bos=False)
    scores = _cached(twin, ids, "blocks.0.attn.hook_attn_scores")[0, 4]
    for query, key in ((5, 2), (9, 9), (12, 0)):
        q = rotated(found.query[ids[0, query]], [query - key], found.attention.rotary)
        assert float(q @ found.key[ids[0, key]]) == pytest.approx(float(scores[query, key]), rel=1e-4, abs=1e-4)


def test_a_last_neuron_moves_the_logits_as_said(twin):
    """Attribution, which runs the network, finds the same direct effect."""
    activation = float(_cached(twin, TEXT, "blocks.29.mlp.hook_post")[0, -1, 812])
    stream = _cached(twin, TEXT, "ln_final.hook_in")[0, -1].double()
    scale = float(stream.square().mean() + 1e-5) ** -0.5
    found = ah.weights.circuit(twin, "L29.N812", k=1)
    best, worst = found.promotes[0], found.suppresses[0]
    seen = ah.attribute(twin, TEXT, (best.token, worst.token)).of("L29.N812")[-1].direct
    assert seen == pytest.approx(activation * scale * (best.value - worst.value), rel=1e-3)


def test_a_neuron_of_women(smollm_twin):
    """It adds to Mary over John, and its weights say why."""
    found = ah.weights.circuit(smollm_twin, "L26.N1262", k=4)
    assert {" women", " woman"} <= {each.text for each in found.opens}
    assert {" women", " woman"} <= {each.text for each in found.promotes}
    lines = str(found).splitlines()
    assert lines[0] == "L26.N1262"
    assert "opens: ' women'" in lines[1]
