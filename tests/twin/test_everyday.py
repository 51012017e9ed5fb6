"""What people do with a model every day works with its twin: dtypes, padding, caches, modes."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

import allheads as ah
from allheads_labs import zoo

KINDS = ["LlamaForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration", "MixtralForCausalLM", "BertForMaskedLM"]
DECODERS = ["LlamaForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_every_dtype(name, dtype):
    sample = zoo.build(name, dtype=dtype)
    twin = ah.convert(sample.bridge)
    seen = []
    for bank in twin.banks:
        bank.hooks.hook_pattern_self.add_hook(lambda pattern, hook: seen.append(pattern.dtype))
    assert sample.run(twin).dtype == dtype
    for bank in twin.banks:
        bank.hooks.hook_pattern_self.remove_hooks()
    assert set(seen) == {torch.promote_types(dtype, torch.float32)}
    report = ah.verify(sample.bridge, twin, sample.inputs)
    assert all(layer.passed for layer in report.layers), report.failures
    coarse = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    assert report.max_logit_error <= max(1e-4, 1e-4 * coarse)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [*DECODERS, "BertForMaskedLM"])
def test_padding(name, side):
    sample = zoo.build(name)
    twin = ah.convert(sample.bridge)
    ids, mask = sample.inputs["input"].repeat(3, 1), torch.ones(3, 12, dtype=torch.long)
    for row, length in enumerate((12, 8, 3)):
        mask[row, slice(0, 12 - length) if side == "left" else slice(length, 12)] = 0
    with torch.no_grad(), twin.evaluated("slots"):
        mine, theirs = (model(ids, attention_mask=mask) for model in (sample.bridge, twin))
    assert (mine - theirs)[mask.bool()].abs().max() < 1e-4
    shorter = ids[1:2, 4:] if side == "left" else ids[1:2, :8]
    with torch.no_grad(), twin.evaluated("slots"):
        alone = twin(shorter)
    assert (theirs[1][mask[1].bool()] - alone[0]).abs().max() < 1e-4


def test_padding_of_an_encoder_and_its_decoder():
    sample = zoo.build("BartForConditionalGeneration")
    twin = ah.convert(sample.bridge)
    mask = torch.ones_like(sample.inputs["input"])
    mask[:, 9:] = 0
    inputs = sample.inputs | {"attention_mask": mask}
    report = ah.verify(sample.bridge, twin, inputs)
    assert report.passed, report.failures
    with torch.no_grad():
        assert (twin(**inputs) - sample.run(twin)).abs().max() > 1e-4


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", [*DECODERS, "T5ForConditionalGeneration"])
def test_generation_writes_what_the_source_writes(name, use_cache):
    sample = zoo.build(name)
    twin = ah.convert(sample.bridge)
    options = {"max_new_tokens": 16, "do_sample": False, "use_cache": use_cache}
    with torch.no_grad(), twin.evaluated("slots"):
        mine, theirs = (
            model.original_model.generate(sample.inputs["input"], **options) for model in (sample.bridge, twin)
        )
    assert torch.equal(mine, theirs)


def test_inference_mode():
    sample = zoo.build("MixtralForCausalLM")
    with torch.inference_mode():
        twin = ah.convert(sample.bridge)
        inside = sample.run(twin)
    assert torch.equal(inside, sample.run(twin))


@pytest.mark.parametrize("no_processing", [True, False])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_compatibility_mode_of_the_twin(name, no_processing):
    sample = zoo.build(name)
    twin = ah.convert(sample.bridge)
    source, before = sample.run(sample.bridge), sample.run(twin).log_softmax(-1)
    with warnings.catch_warnings():
        # Norms stay unfolded, says TransformerLens; that is meant.
        warnings.simplefilter("ignore")
        twin.enable_compatibility_mode(no_processing=no_processing, disable_warnings=True)
    assert (sample.run(twin).log_softmax(-1) - before).abs().max() < 1e-5
    assert torch.equal(sample.run(sample.bridge), source)


def test_a_source_in_compatibility_mode():
    sample = zoo.build("LlamaForCausalLM")
    sample.bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    assert ah.verify(sample.bridge, ah.convert(sample.bridge), sample.inputs).passed
    other = zoo.build("LlamaForCausalLM").bridge
    other.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ah.AllHeadsError, match="enable_compatibility_mode has processed"):
        ah.convert(other)


def test_a_model_in_training_mode_is_converted_with_a_warning():
    sample = zoo.build("GPT2LMHeadModel")
    sample.bridge.original_model.train()
    with pytest.warns(UserWarning, match="in training mode, with dropout"):
        twin = ah.convert(sample.bridge)
    assert sample.bridge.original_model.training
    assert not any(module.training for module in (*twin.modules(), *twin.original_model.modules()))
    assert torch.equal(sample.run(twin), sample.run(twin))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", KINDS)
def test_cuda(name):
    sample = zoo.build(name)
    inputs = {key: value.cuda() for key, value in sample.inputs.items()}
    bridge = sample.bridge.to("cuda")
    assert ah.verify(bridge, ah.convert(bridge), inputs).passed


def test_torch_compile():
    """In an interpreter of its own: what counts lines cannot be compiled."""
    script = """
import torch, allheads as ah
from allheads_labs import zoo
sample = zoo.build("LlamaForCausalLM")
twin = ah.convert(sample.bridge)
with torch.no_grad(), twin.evaluated("slots"):
    compiled = torch.compile(twin, backend="eager")(sample.inputs["input"])
    print(float((compiled - sample.run(twin)).abs().max()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


@pytest.mark.parametrize("name", [*KINDS, "BloomForCausalLM", "OPTForCausalLM", "Gemma2ForCausalLM"])
def test_every_hook_point_can_be_hooked_by_name(name):
    twin = ah.convert(zoo.build(name).bridge)
    # TransformerLens asks for a setting before some: those say so.
    points = [point for point in twin.hook_dict if twin._gated_hook_reason(point) is None]
    assert any(point.endswith("mlp.hook_out") for point in points)
    for point in points:
        with twin.hooks(fwd_hooks=[(point, lambda value, hook: value)]):
            pass
