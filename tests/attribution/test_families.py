"""Every family that attribution reads: random questions have answers that add up, and changes do what they predict."""

from __future__ import annotations

import pytest
import torch
from tests.adversary.attributions import faults

import allheads as ah
from allheads.heads.frozen import FrozenGates
from allheads_labs import zoo

#: What attribution cannot read is refused, in these words.
REFUSED = {
    "HrmTextForCausalLM": r"that runs L_blocks.0.attn.hook_z more than once",
    "NanoGPTForCausalLM": "where nothing passes blocks.0.attn.hook_z",
}


#: Some of every kind; `python -m tests.adversary.attributions` goes through them all.
SOME = [
    *("BartForConditionalGeneration", "BertForMaskedLM", "BloomForCausalLM", "Cohere2ForCausalLM"),
    *("DeepseekV2ForCausalLM", "DeiTForImageClassification", "FalconForCausalLM", "GPT2LMHeadModel"),
    *("GPTJForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
    *("Glm4ForCausalLM", "GraniteForCausalLM", "HubertForCTC", "Llama4ForCausalLM", "LlamaForCausalLM"),
    *("LlavaForConditionalGeneration", "MixtralForCausalLM", "ModernBertDecoderForCausalLM", "MptForCausalLM"),
    *("NanoChatForCausalLM", "OPTForCausalLM", "Olmo2ForCausalLM", "Phi3ForCausalLM", "Qwen2MoeForCausalLM"),
    *("Qwen3NextForCausalLM", "RecurrentGemmaForCausalLM", "StableLmForCausalLM", "T5ForConditionalGeneration"),
    *("T5GemmaForConditionalGeneration", "TransformerLensNative", "XGLMForCausalLM"),
]


@pytest.mark.filterwarnings("ignore")  # of the others, about parts that they do not find
@pytest.mark.parametrize("name", SOME)
def test_random_questions(name):
    assert list(faults(name, seed=2)) == []


def test_a_wrong_answer_is_seen(monkeypatch):
    """The heads of neurons write a thousandth too much while they are frozen."""
    honest = FrozenGates.output
    monkeypatch.setattr(FrozenGates, "output", lambda self, *args: 1.001 * honest(self, *args))
    assert list(faults("GPT2LMHeadModel", seed=2))


@pytest.mark.filterwarnings("ignore:.*ook alias")  # of TransformerLens, about parts that it does not find
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


@pytest.mark.filterwarnings("ignore")  # of the others, about parts that they do not find
@pytest.mark.parametrize("name", ["NemotronHForCausalLM", "BambaForCausalLM"])
def test_what_is_held_is_held_for_several_rows(name):
    """Attention that nothing shows gives its patterns beside what it writes; a router, rows laid end to end."""
    sample = zoo.build(name, dtype=torch.float64)
    graph = ah.graph(ah.convert(sample.bridge), sample.inputs, 7, budget=15)
    assert graph.confirm().frozen_error < 1e-6  # NemotronH's logits are in float32
