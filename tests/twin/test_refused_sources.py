"""Sources that cannot have a twin are refused in one sentence, before anything is changed; dispatched ones stay so."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import LlamaConfig, LlamaForCausalLM

import allheads as ah
from allheads_labs import zoo

IDS = torch.arange(12)[None]
PARTS = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")


def _network():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4, attn_implementation="eager")
    return LlamaForCausalLM(config).eval()


def _dispatched(tmp_path, **places):
    placed = dict.fromkeys(PARTS, "cpu") | places
    options = {"offload_dir": tmp_path} if "disk" in placed.values() else {}
    network = dispatch_model(_network(), placed, main_device="cpu", force_hooks=True, **options)
    return build_bridge_from_module(network, "LlamaForCausalLM", hf_config=network.config)


def test_a_dispatched_model_stays_dispatched(tmp_path):
    source = _dispatched(tmp_path)
    before = source(IDS)
    twin = ah.convert(source)
    body = twin.original_model
    assert body.hf_device_map == source.original_model.hf_device_map
    for name in ("model.embed_tokens", "model.layers.0", "model.layers.1.self_attn", "lm_head"):
        placed = body.get_submodule(name)
        assert placed._hf_hook is not source.original_model.get_submodule(name)._hf_hook
        assert placed._hf_hook.execution_device == "cpu"
    assert ah.verify(source, twin, IDS).passed
    assert torch.equal(source(IDS), before)


def test_weights_on_disk_are_refused(tmp_path):
    source = _dispatched(tmp_path, **{"model.layers.1": "disk"})
    with pytest.raises(ah.AllHeadsError, match=r"in memory, got one with 9 of them elsewhere, as model\.layers\.1\."):
        ah.convert(source)


def _mlp(source, layer):
    return source.original_model.get_submodule(f"model.layers.{layer}.mlp._original_component")


class Quantised(nn.Linear):
    """As libraries do: codes in the place of weights, unpacked whenever the layer runs."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        weight = linear.weight.detach()
        self.scale = float(weight.abs().max()) / 127
        codes = (weight / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


class Packed(nn.Module):
    """The same without being a linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("codes", linear.weight.detach().clone().to(torch.int8))

    def forward(self, x):
        return nn.functional.linear(x, self.codes.to(x.dtype))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Quantised, r"floating-point weights of one dtype, got float32, int8 in L1\. Load the model unquantised"),
        (Packed, r"LlamaMLP in L1, .*up_proj: Packed, .*quantised projections"),
    ],
)
def test_quantised_layers(kind, message):
    source = zoo.build("LlamaForCausalLM").bridge
    projection = _mlp(source, 1).up_proj
    projection.set_original_component(kind(projection.original_component))
    before = source(IDS)
    with pytest.raises(ah.AllHeadsError, match=message):
        ah.convert(source)
    assert torch.equal(source(IDS), before)


def test_mixed_dtypes():
    source = zoo.build("LlamaForCausalLM").bridge
    _mlp(source, 1).down_proj.original_component.double()
    with pytest.raises(ah.AllHeadsError, match=r"of one dtype, got float32, float64 in L1\. .* in one dtype"):
        ah.convert(source)
