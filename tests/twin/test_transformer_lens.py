"""What TransformerLens does with a bridge it does with a twin: `make peers` runs its own tests, these stand for them.

A twin in float64 that computes by the activations themselves differs from its source by rounding only. Where hooks look
at neurons, their heads are run: exact where the activation is a ReLU, else as good as the gates.
"""

from __future__ import annotations

import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

import allheads as ah
from allheads_labs import zoo

#: An MLP that is plain, gated, in the layer, of an encoder-decoder, takes the residual stream, is one of experts.
KINDS = [
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "OPTForCausalLM",
    "T5ForConditionalGeneration",
    "MPTForCausalLM",
    "MixtralForCausalLM",
]
DECODERS = ["GPT2LMHeadModel", "LlamaForCausalLM"]
EXACT = {"rtol": 1e-9, "atol": 1e-10}
#: Gates are certified to 1e-5 or better, and what a wrong hook point sees is off by a tenth or more.
GATES = {"rtol": 1e-4, "atol": 1e-4}
RELU = ("OPTForCausalLM", "T5ForConditionalGeneration")


def _pair(name: str, seed: int = 0) -> tuple[zoo.Sample, ah.TwinBridge]:
    sample = zoo.build(name, seed=seed, dtype=torch.float64)
    return sample, ah.convert(zoo.build(name, seed=seed, dtype=torch.float64).bridge)


def _cache(sample: zoo.Sample, model: TransformerBridge) -> dict[str, torch.Tensor]:
    inputs = dict(sample.inputs)
    return dict(model.run_with_cache(inputs.pop("input"), **inputs)[1].items())


def _assert_same_cache(sample: zoo.Sample, twin: ah.TwinBridge, tolerance: dict[str, float]) -> None:
    expected, got = _cache(sample, sample.bridge), _cache(sample, twin)
    assert not expected.keys() - got.keys()
    for point, tensor in expected.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(got[point], tensor, **tolerance, msg=lambda text, at=point: f"{at}: {text}")


@pytest.mark.parametrize("name", KINDS)
def test_every_hook_point_of_the_source_sees_in_the_twin_what_it_sees_there(name):
    sample, twin = _pair(name)
    _assert_same_cache(sample, twin, EXACT if name in RELU else GATES)


@pytest.mark.parametrize(
    "point", ["mlp.hook_pre", "mlp.hook_post", "mlp.in.hook_out", "mlp.out.hook_in", "hook_mlp_out"]
)
def test_an_edit_at_a_hook_point_does_what_it_does_in_the_source(point):
    sample, twin = _pair("GPT2LMHeadModel")

    def halve(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor / 2

    hooks = [(f"blocks.0.{point}", halve)]
    expected, got = (m.run_with_hooks(sample.inputs["input"], fwd_hooks=hooks) for m in (sample.bridge, twin))
    torch.testing.assert_close(got, expected, **EXACT)
    assert not torch.allclose(got, twin(sample.inputs["input"]), atol=1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_compatibility_mode_processes_the_twins_weights_as_it_does_the_sources(name):
    sample, twin = _pair(name)
    before = twin(sample.inputs["input"])
    for model in (sample.bridge, twin):
        model.enable_compatibility_mode(disable_warnings=True)
    _assert_same_cache(sample, twin, GATES)
    after = twin(sample.inputs["input"])
    torch.testing.assert_close(after.log_softmax(-1), before.log_softmax(-1), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(after, before, atol=1e-3)  # centred: only differences of logits are the model's


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_the_sum_of_what_the_components_write(name):
    sample, twin = _pair(name)
    ids = sample.inputs["input"]
    for model in (sample.bridge, twin):
        model.enable_compatibility_mode(disable_warnings=True)
    attributions = []
    for model in (sample.bridge, twin):
        _, cache = model.run_with_cache(ids)
        parts = cache.decompose_resid(layer=-1, mode="all")
        attributions.append(cache.logit_attrs(parts, tokens=ids))
    torch.testing.assert_close(attributions[1], attributions[0], **GATES)
    assert attributions[0].abs().max() > 0.1


# TransformerLens leaves the weights of experts out of its state.
@pytest.mark.parametrize("name", KINDS[:-1])
def test_a_state_dict_of_a_source_makes_a_twin_of_another_seed_its_twin(name):
    sample, _ = _pair(name)
    _, twin = _pair(name, seed=1)
    assert not torch.allclose(sample.run(twin), sample.run(sample.bridge), atol=1e-3)
    state = sample.bridge.state_dict()
    assert not state.keys() - twin.state_dict().keys()
    twin.load_state_dict(state, strict=False)
    torch.testing.assert_close(sample.run(twin), sample.run(sample.bridge), **EXACT)


def test_a_twins_state_dict_loads_into_a_twin():
    sample, twin = _pair("LlamaForCausalLM")
    _, other = _pair("LlamaForCausalLM", seed=1)
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(sample.run(other), sample.run(twin), **EXACT)


def test_a_model_of_attention_alone_has_a_twin_without_neurons():
    config = TransformerBridgeConfig(
        architecture="TransformerLensNative",
        d_model=16,
        n_heads=2,
        d_head=8,
        n_layers=2,
        n_ctx=32,
        d_vocab=24,
        attn_only=True,
        normalization_type="LN",
        seed=0,
    )
    source = TransformerBridge.boot_native(config)
    with pytest.warns(UserWarning, match="attention alone"):
        twin = ah.convert(source)
    ids = torch.arange(12)[None]
    assert not twin.layers
    torch.testing.assert_close(twin(ids), source(ids))
