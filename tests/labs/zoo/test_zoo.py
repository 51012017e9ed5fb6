"""A dozen families of the zoo: built, run, repeatable, and with activations that are really used."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from allheads.errors import AllHeadsError
from allheads_labs import zoo
from allheads_labs.zoo.families import BARE, CHANGES, CLASSES, IMAGE_TOKENS, NATIVE, WITHOUT_CLASS
from allheads_labs.zoo.settings import small
from allheads_labs.zoo.weights import randomise

#: One of every kind: shapes of what comes out.
FAMILIES = {
    "LlamaForCausalLM": (1, 12, 96),
    "GPT2LMHeadModel": (1, 12, 96),
    "BertForMaskedLM": (1, 12, 96),
    "OPTForCausalLM": (1, 12, 96),
    "BloomForCausalLM": (1, 12, 96),
    "T5ForConditionalGeneration": (1, 7, 96),
    "BartForConditionalGeneration": (1, 7, 96),
    "MixtralForCausalLM": (1, 12, 96),
    "GptOssForCausalLM": (1, 12, 96),
    "FalconH1ForCausalLM": (1, 12, 96),
    "NemotronHForCausalLM": (1, 12, 96),
    "Gemma3nForConditionalGeneration": (1, 12, 96),
    "Qwen3VLForConditionalGeneration": (1, 12, 96),
    "Gemma3ForConditionalGeneration": (1, 16, 96),
    "LlavaNextForConditionalGeneration": (1, 48, 96),
    "ViTModel": (1, 17, 32),
    "ASTForAudioClassification": (1, 2),
    "Wav2Vec2ForCTC": (1, 39, 96),
    NATIVE: (1, 12, 96),
}

#: The first projection of every kind of MLP.
FIRST = {
    "LlamaForCausalLM": "gate_proj",
    "GPT2LMHeadModel": "c_fc",
    "BertForMaskedLM": "intermediate.dense",
    "OPTForCausalLM": "fc1",
    "BloomForCausalLM": "dense_h_to_4h",
    "T5ForConditionalGeneration": "wi",
    "Gemma3ForConditionalGeneration": "fc1",
    "Wav2Vec2ForCTC": "intermediate_dense",
    NATIVE: "fc_in",
}

#: Those that cannot write: encoders, and the network that transformers does not know.
SILENT = {"BertForMaskedLM", "ViTModel", "ASTForAudioClassification", "Wav2Vec2ForCTC", NATIVE}

sample = functools.cache(zoo.build)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread, and long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_runs_and_repeats(name: str) -> None:
    first = sample(name)
    torch.rand(1)  # what was drawn before does not matter
    again = zoo.build(name)
    out = first.run(first.bridge)
    assert out.shape == FAMILIES[name]
    assert out.isfinite().all()
    assert torch.equal(out, again.run(again.bridge))
    assert first.generates == (name not in SILENT)
    assert first.output == ("last_hidden_state" if name in BARE else "logits")


@pytest.mark.parametrize("name", FAMILIES)
def test_seed_and_every_input_change_the_output(name: str) -> None:
    this, other = sample(name), zoo.build(name, seed=1)
    out = this.run(this.bridge)
    assert (other.run(other.bridge) - out).abs().max() > 1e-2
    for key in this.inputs.keys() - {"image_sizes"}:
        with torch.no_grad():
            changed = this.bridge(**(this.inputs | {key: other.inputs[key]}))
        assert (changed - out).abs().max() > 1e-2, key


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in SILENT])
def test_generation_is_the_same_with_and_without_a_cache(name: str) -> None:
    ids = sample(name).inputs["input"]
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    written = [
        sample(name).bridge.original_model.generate(ids, use_cache=cached, **settings) for cached in (True, False)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize("name", FIRST)
def test_activations_are_really_used(name: str) -> None:
    seen = _outputs(sample(name), FIRST[name])
    assert seen
    for out in seen:
        assert out.max() > 6
        assert out.min() < -6


def _outputs(made: zoo.Sample, end: str) -> list[Tensor]:
    """What every projection under this name gives."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda *args: seen.append(args[-1]))
        for path, module in made.bridge.original_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and path.replace("._original_component", "").endswith(end)
    ]
    made.run(made.bridge)
    for handle in handles:
        handle.remove()
    return seen


def test_other_dtypes_hold_the_same_weights() -> None:
    single, double = sample("MixtralForCausalLM"), zoo.build("MixtralForCausalLM", dtype=torch.float64)
    out = double.run(double.bridge)
    assert out.dtype == torch.float64
    assert 0 < (out - single.run(single.bridge)).abs().max() < 1e-4


def test_building_leaves_chance_and_warnings_alone() -> None:
    before = torch.random.get_rng_state()
    zoo.build("LlamaForCausalLM", seed=7)
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_name_is_there() -> None:
    names = zoo.names()
    assert names == sorted(names)
    assert len(names) > 150
    assert {*WITHOUT_CLASS, *CLASSES, *BARE, *IMAGE_TOKENS, NATIVE} <= {*names}
    assert CHANGES.keys() <= {*names, *CLASSES.values()}


def test_what_is_not_built_says_why() -> None:
    with pytest.raises(zoo.NotBuilt, match="would have to be downloaded") as caught:
        zoo.build("DreamModel")
    assert caught.value.name == "DreamModel"
    with pytest.raises(zoo.NotBuilt, match="user's own"):
        zoo.build("TransformerLensPretrain")
    with pytest.raises(zoo.NotBuilt, match="float64"):
        zoo.build("XGLMForCausalLM", dtype=torch.float64)


def test_what_does_not_come_up_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHANGES, "LlamaForCausalLM", {"hidden_act": "no such function"})
    with pytest.raises(zoo.NotBuilt, match=r"does not come up: .*no such function") as caught:
        zoo.build("LlamaForCausalLM")
    assert "\n" not in caught.value.reason
    monkeypatch.setitem(CLASSES, "LlamaForCausalLM", "OfAnotherVersion")
    with pytest.raises(zoo.NotBuilt, match="has no class"):
        zoo.build("LlamaForCausalLM")


def test_an_unknown_name_gets_close_ones() -> None:
    with pytest.raises(AllHeadsError, match="MixtralForCausalLM") as caught:
        zoo.build("MixtralForCausal")
    assert not isinstance(caught.value, zoo.NotBuilt)


def test_layers_of_every_kind() -> None:
    config = sample("GptOssForCausalLM").bridge.original_model.config
    assert config.layer_types == ["sliding_attention", "full_attention"]
    text = sample("Gemma3nForConditionalGeneration").bridge.original_model.config.text_config
    assert {*zip(text.layer_types, text.activation_sparsity_pattern, strict=True)} == {
        (kind, share) for kind in ("sliding_attention", "full_attention") for share in (0.95, 0.0)
    }


def test_words_are_spread_over_experts_by_table() -> None:
    """DeepSeek V4's first mixture looks its experts up; left alone, the table says 0 throughout."""
    buffers = sample("DeepseekV4ForCausalLM").bridge.original_model.named_buffers()
    (table,) = (buffer for name, buffer in buffers if name.endswith("tid2eid"))
    assert {*table.flatten().tolist()} == {0, 1, 2, 3}
    assert (table[:, 0] != table[:, 1]).all()


def test_changes_reach_inner_configurations() -> None:
    from transformers import LlavaConfig, SiglipVisionConfig

    changes = {"text_config": {"mlp_bias": True}, "vision_config": SiglipVisionConfig(hidden_size=16)}
    config = small(LlavaConfig(), changes)
    assert (config.text_config.mlp_bias, config.text_config.hidden_size) == (True, 32)
    assert (config.vision_config.model_type, config.vision_config.hidden_size) == ("siglip_vision_model", 16)


def test_norms_keep_the_way_they_store_gains() -> None:
    class OffsetNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(400))

    model = nn.ModuleDict({"norm": nn.LayerNorm(400), "offset_norm": OffsetNorm(), "fc1": nn.Linear(400, 400)})
    torch.manual_seed(0)
    randomise(model)
    model.requires_grad_(False)
    assert model["norm"].weight.mean() == pytest.approx(1.0, abs=0.02)
    assert model["offset_norm"].weight.mean() == pytest.approx(0.0, abs=0.02)
    assert model["offset_norm"].weight.std() == pytest.approx(0.1, abs=0.02)
    assert model["fc1"].weight.std() == pytest.approx(4 / 20, rel=0.02)
