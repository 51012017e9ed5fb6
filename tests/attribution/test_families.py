"""Every family that attribution reads: random questions have answers that add up, and changes do what they predict."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import zoo

#: The end of these is curved: an activation in the head, or a cap of the logits.
CURVED = ["BertForMaskedLM", "Gemma2ForCausalLM", "ModernBertDecoderForCausalLM", "NanoChatForCausalLM"]
LINEAR = [
    "ArceeForCausalLM",
    "BloomForCausalLM",
    "CodeGenForCausalLM",
    "Cohere2ForCausalLM",
    "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma4UnifiedForConditionalGeneration",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "GraniteForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "Jais2ForCausalLM",
    "LlamaForCausalLM",
    "MinGPTForCausalLM",
    "MptForCausalLM",
    "NemotronForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
    "TransformerLensNative",
]
#: What attribution cannot read is refused, in these words.
REFUSED = {
    "Gemma4ForConditionalGeneration": "with 4 heads and 96 neurons in layer",
    "OpenAIGPTLMHeadModel": "where nothing passes blocks.1.hook_resid_post",
    "YoutuForCausalLM": "whose 4 heads are shown as 8 at blocks.0.attn.hook_z",
    "BambaForCausalLM": "without blocks.0.attn.hook_z",
}


@pytest.mark.parametrize("name", LINEAR + CURVED)
def test_random_questions(name):
    twin = ah.convert(zoo.build(name, seed=2, dtype=torch.float64).bridge)
    draw = torch.Generator().manual_seed(len(name))
    ids = torch.randint(3, 64, (1, 9), generator=draw)
    weights = torch.randn(twin.cfg.d_vocab_out, generator=draw, dtype=torch.float64)
    at, rule = int(torch.randint(9, (), generator=draw)), ("half", "value", "gate")[len(name) % 3]

    def target():
        with torch.no_grad():
            return float(twin(ids)[0, at] @ weights)

    own, found = target(), ah.attribute(twin, ids, weights, position=at, rule=rule)
    close = 1e-11 * max(1.0, abs(own), float(found.embeddings.abs().sum()))
    assert abs(found.target_value - own) < close
    assert abs(found.total - own) < close
    assert found.completeness_error < 1e-12
    assert (found.intercept != 0.0) == (name in CURVED)
    for incomplete in ("live", "gradient"):
        assert abs(ah.attribute(twin, ids, weights, position=at, rule=incomplete).target_value - own) < close
    with ah.frozen(twin, ids, rule=rule):
        assert abs(target() - own) < close
        for table, point in ((found.heads, "attn.hook_z"), (found.neurons.transpose(1, 2), "mlp.hook_post")):
            layer, index = (int(torch.randint(size, (), generator=draw)) for size in table.shape[:2])
            taken = -3.0 * float(table[layer, index].sum())

            def change(value, hook, index=index):
                return value.index_copy(2, torch.tensor([index]), -2.0 * value[:, :, index : index + 1])

            with twin.hooks(fwd_hooks=[(f"blocks.{layer}.{point}", change)]):
                assert name in CURVED or abs(target() - own - taken) < 10 * close, point


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(name):
    twin = ah.convert(zoo.build(name).bridge)
    ids = torch.tensor([[5, 9, 30, 22]])
    for rule in ("half", "live", "gradient"):
        with pytest.raises(ah.AllHeadsError, match=REFUSED[name]):
            ah.attribute(twin, ids, 7, rule=rule)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Gemma4UnifiedForConditionalGeneration"])
def test_sources_add_up_or_are_refused(name):
    """Gemma 4 norms its values behind the hook point that shows them."""
    twin = ah.convert(zoo.build(name, dtype=torch.float64).bridge)
    found = ah.attribute(twin, torch.tensor([[5, 9, 30, 22]]), 7)
    if name == "GPT2LMHeadModel":
        assert torch.allclose(found.by_source().sum(-1), found.heads, atol=1e-12)
    else:
        with pytest.raises(ah.AllHeadsError, match=r"heads that write their pattern times blocks.0.attn.hook_v"):
            found.by_source()


@pytest.mark.parametrize("name", ["CodeGenForCausalLM"])
def test_patterns_that_are_shown_in_float32(name):
    twin = ah.convert(zoo.build(name, dtype=torch.float64).bridge)
    why = ah.attribute_pattern(twin, torch.tensor([[5, 9, 30, 22]]), "L1.A0")
    assert why.query.completeness_error < 1e-6


def test_heads_that_are_not_shown_one_by_one_are_not_changed():
    twin = ah.convert(zoo.build("YoutuForCausalLM").bridge)
    with ah.ablate(twin, ["L0.A1"]), pytest.raises(ah.AllHeadsError, match=r"4 heads at blocks.0.attn.hook_z, got 8"):
        twin(torch.tensor([[5, 9, 30, 22]]))
