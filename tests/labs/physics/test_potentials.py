"""Potentials: their patterns are the twin's, their gradients what a change of the stream does to the twin's scores."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import physics
from allheads_labs.physics.parts import random_identity

#: Grouped keys and full rotary; biases and no rotary; partial rotary, side by side; windows; both directions.
READ = ["LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "MistralForCausalLM", "BertForMaskedLM"]
#: ALiBi; norms of queries; rotary of neighbours; caps; sinks.
REFUSED = ["BloomForCausalLM", "Olmo2ForCausalLM", "GPTJForCausalLM"]


def _seen(twin, ids, name, hooks=()):
    with torch.no_grad(), twin.hooks(fwd_hooks=list(hooks)):
        return twin.run_with_cache(ids, names_filter=[name])[1][name][0]


def test_random_heads_in_float64():
    assert max(random_identity(seed) for seed in range(5)) < 1e-10


@pytest.mark.parametrize("family", READ)
def test_pattern_and_gradient_of_ordinary_heads(twin_of, family):
    twin, ids = twin_of(family)
    for number in (0, 3):
        found = physics.potential(twin, ids, f"L1.A{number}")
        # Softmax is float32 in some families, whatever their dtype.
        assert torch.allclose(found.pattern, _seen(twin, ids, "blocks.1.attn.hook_pattern")[number], atol=1e-6)
        assert found.x.dtype == found.gradient.dtype == torch.float64
        gradient, own = found.autograd()
        assert (gradient - found.gradient).abs().max() < 1e-10
        assert (own - found.own).abs().max() < 1e-10
        assert found.own.norm() > 1e-3 * found.gradient.norm()
        mean = torch.where(found.pattern > 0, found.pattern * found.field.scores(found.x, found.x), 0.0).sum(-1)
        assert torch.allclose(found.U, mean + found.entropy, atol=1e-10)
        assert torch.equal(found.at(found.x), found.U)


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_both_terms_are_what_a_change_of_the_stream_does_to_the_scores_of_the_twin(twin_of, family):
    twin, ids = twin_of(family)
    found, at, step = physics.potential(twin, ids, "L1.A2"), 7, 1e-5
    direction = torch.randn(found.x.shape[1], generator=torch.Generator().manual_seed(0)).double()

    def potential(sign):
        def move(x, hook):
            x = x.clone()
            x[0, at] += sign * step * direction
            return x

        name = "blocks.1.attn.hook_attn_scores"
        return _seen(twin, ids, name, [("blocks.1.attn.hook_in", move)])[2, at, : at + 1].logsumexp(-1)

    slope = (potential(1) - potential(-1)) / (2 * step)
    assert float(slope) == pytest.approx(float((found.gradient + found.own)[at] @ direction), abs=1e-7)
    assert abs(float(found.own[at] @ direction)) > 1e-4


def test_without_rotary_it_is_the_mean_input_through_the_weights(twin_of):
    """W_Q W_K^T (sum_k a_ik x_k) / sqrt(d_head), and what the biases of keys add."""
    twin, ids = twin_of("GPT2LMHeadModel")
    found, attn = physics.potential(twin, ids, "L0.A1"), twin.blocks[0].attn
    W_Q, W_K, b_Q, b_K = (getattr(attn, name)[1].detach() for name in ("W_Q", "W_K", "b_Q", "b_K"))
    scale = W_Q.shape[1] ** -0.5
    expected = scale * (W_Q @ (W_K.T @ (found.pattern @ found.x).T + b_K[:, None])).T
    assert torch.allclose(found.gradient, expected, atol=1e-12)
    own = scale * found.pattern.diagonal()[:, None] * ((found.x @ W_Q + b_Q) @ W_K.T)
    assert torch.allclose(found.own, own, atol=1e-12)


@pytest.mark.parametrize("family", REFUSED)
def test_scores_of_another_kind_are_refused(twin_of, family):
    twin, ids = twin_of(family)
    with pytest.raises(ah.AllHeadsError, match=r"scores that are scale .* got others at L1\.A2"):
        physics.potential(twin, ids, "L1.A2")


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_neuron_heads(twin_of, family):
    twin, ids = twin_of(family)
    bank = twin.banks[1]
    patterns = _seen(twin, ids, "blocks.1.mlp.hook_pattern")
    for part in range(bank.gates.heads):
        found = physics.potential(twin, ids, f"L1.N5.{part}")
        theirs = patterns[part * bank.d_mlp + 5]
        assert torch.allclose(found.pattern, theirs[:, : found.pattern.shape[1]], atol=1e-9)
        assert torch.allclose((-found.U).exp(), theirs[:, 0], atol=1e-9)
        gradient, own = found.autograd()
        assert (gradient - found.gradient).abs().max() < 1e-10
        assert not own.any()
        assert not found.own.any()
        w = (bank.W_gate if bank.gated else bank.W_in)[:, 5].detach()
        cosine = torch.cosine_similarity(found.gradient, w, dim=-1)
        assert torch.allclose(cosine.abs(), torch.ones_like(cosine))
        assert torch.allclose((found.pattern * found.field.scores(found.x, found.x)).sum(-1) + found.entropy, found.U)


def test_a_neuron_head_with_a_key_of_its_own(tiny, tokens):
    twin = ah.convert(tiny("llama", dtype=torch.float64))
    draw = torch.Generator().manual_seed(1)
    with twin.banks[1].edit() as heads:
        heads.W_K[4] = torch.randn(32, 1, generator=draw).double()
        heads.b_K[4] = 0.5
    found = physics.potential(twin, tokens[0], "L1.N4.0")
    assert torch.allclose(found.pattern[:, 0], _seen(twin, tokens[:1], "blocks.1.mlp.hook_pattern_self")[4], atol=1e-9)
    gradient, own = found.autograd()
    assert (gradient - found.gradient).abs().max() < 1e-10
    assert (own - found.own).abs().max() < 1e-10
    assert own.norm() > 1e-3


def test_requests_that_make_no_sense(twin_of):
    twin, ids = twin_of("LlamaForCausalLM")
    cases = {"Name one of them: L1.N3.0": "L1.N3", "a head of this twin": "L7.A1", "a label such as": "A1"}
    for message, label in cases.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            physics.potential(twin, ids, label)
    with pytest.raises(ah.AllHeadsError, match="one stack of layers"):
        twin, ids = twin_of("T5ForConditionalGeneration")
        physics.potential(twin, ids, "EL0.A0")


def test_smollm(smollm_twin):
    text = "When Mary and John went to the store, John gave a drink to"
    for label in ("L0.A0", "L12.A3", "L29.A8", "L17.N5.0", "L17.N5.1"):
        found = physics.potential(smollm_twin, text, label)
        gradient, own = found.autograd()
        assert found.gradient.dtype == torch.float32
        assert (gradient - found.gradient).norm() < 1e-4 * found.gradient.norm()
        assert (own - found.own).norm() <= 1e-4 * found.own.norm()
        layer = found.label.split(".")[0][1:]
        point = f"blocks.{layer}.{'mlp' if 'N' in label else 'attn'}.hook_pattern"
        number = {"L17.N5.0": 5, "L17.N5.1": 1536 + 5}.get(label, int(label[-1]))
        theirs = _seen(smollm_twin, smollm_twin.to_tokens(text), point)[number]
        assert torch.allclose(found.pattern, theirs[:, : found.pattern.shape[1]], atol=1e-5)
