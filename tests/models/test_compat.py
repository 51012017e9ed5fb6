"""The private names of torch, transformers and TransformerLens: what each failure means is its message."""

from __future__ import annotations

import inspect
import os
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from torch import nn
from transformer_lens.model_bridge.sources.transformers import helpers
from transformers import GPT2Config, GPT2LMHeadModel

import allheads as ah
from allheads.models import compat


@pytest.fixture(scope="module")
def gpt2(tiny):
    return tiny("gpt2")


def test_components_keep_what_they_wrap(gpt2):
    mlp = gpt2.blocks[0].mlp
    assert "_original_component" in mlp._modules, (
        "TransformerLens' components no longer keep what they wrap as _original_component."
    )
    assert type(compat.network_module(mlp)).__name__ == "GPT2MLP"
    assert type(compat.called(gpt2.original_model, "transformer.h.0.mlp.c_fc")).__name__.endswith("Bridge")
    assert all(compat.network_module(outer) is not outer for outer in compat.wrappers(gpt2.original_model).values())


def test_paths_of_the_network_lie_below_the_components(gpt2):
    paths = {compat.network_path(path) for path, _ in gpt2.original_model.named_modules()}
    assert "transformer.h.1.mlp.c_proj" in paths, (
        "TransformerLens no longer puts its components into the network, with only _original_component on the way."
    )


def test_a_component_can_be_put_around_a_module(gpt2):
    component, module = type(gpt2.ln_final)("name", gpt2.cfg), nn.Identity()
    compat.wrap(component, module)
    assert compat.network_module(component) is module, "set_original_component of a component no longer wraps a module."


def test_children_of_a_bridge_are_its_components(gpt2):
    names = [name for name, _ in compat.named_components(gpt2)]
    assert {"embed", "blocks.1.attn", "blocks.1.mlp.in", "unembed"} <= set(names)
    private = [name for name in names if any(part.startswith("_") for part in name.split("."))]
    assert not private, f"TransformerLens' bridges have a new kind of child that is no component: {private[:3]}."


def test_a_component_computes_without_its_ends(gpt2):
    component, x = gpt2.blocks[0].ln1, torch.randn(1, 3, gpt2.cfg.d_model)
    expected = component(x)
    passed = []
    names = ["blocks.0.ln1.hook_in", "blocks.0.ln1.hook_out"]
    with gpt2.hooks(fwd_hooks=[(name, lambda value, hook: passed.append(hook.name)) for name in names]):
        with compat.without_ends(component):
            alone = component(x)
        assert not passed, "torch no longer finds the hook points of a bridge component in _modules."
        component(x)
    assert passed == names
    assert torch.equal(alone, expected)


def test_processed_weights_are_marked(tiny):
    model = tiny("gpt2")
    assert not compat.weights_processed(model)
    model.enable_compatibility_mode()
    assert compat.weights_processed(model), (
        "TransformerLens no longer notes on a bridge, as _weights_processed, that its weights were folded."
    )


@pytest.mark.parametrize(
    "name", ["_scan_existing_hooks", "_hook_registry", "_hook_cache", "_block_alias_cache", "_driver"]
)
def test_how_a_bridge_finds_its_hook_points(gpt2, name):
    assert hasattr(gpt2, name), f"TransformerLens' bridges no longer have {name}: see scan_hooks."


def test_a_scan_shows_new_hook_points(tiny):
    twin = ah.convert(tiny("gpt2"))
    assert {"supported_hook_points", "non_fireable_hook_points"} <= set(dir(twin._driver)), (
        "TransformerLens' driver no longer lists which hook points fire."
    )
    assert "blocks.0.mlp.hook_z" in twin.hook_dict, (
        "After scan_hooks a bridge does not show hook points that were added."
    )
    assert "blocks.0.mlp.hook_z" in twin._driver.supported_hook_points


def test_a_configuration_names_its_kernels(gpt2):
    network = compat.make_network(GPT2LMHeadModel, gpt2.original_model.config, attn_implementation="eager")
    assert compat.attention_kernel(network.config) == "eager", (
        "transformers no longer keeps the implementation of attention as _attn_implementation."
    )
    compat.use_attention_kernel(network, "sdpa")
    assert compat.attention_kernel(network.config) == "sdpa", "set_attn_implementation no longer changes the kernel."
    assert hasattr(network.config, "_experts_implementation"), (
        "transformers no longer keeps the implementation of experts as _experts_implementation."
    )


def test_networks_are_made_without_drawing_weights(monkeypatch):
    drawn = []
    monkeypatch.setattr(GPT2LMHeadModel, "_init_weights", lambda *_: drawn.append(True))
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9, n_positions=8)
    state = torch.get_rng_state()
    network = compat.make_network(GPT2LMHeadModel, config, dtype=torch.float64)
    assert network.dtype == torch.float64, "_from_config of transformers no longer takes a dtype."
    assert not drawn, "no_init_weights of transformers no longer keeps a network from drawing its weights."
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dequantised_model_is_marked_as_plain():
    model = SimpleNamespace(hf_quantizer=1, is_quantized=True, config=SimpleNamespace(quantization_config=1))
    compat.forget_quantisation(model)
    assert not model.is_quantized
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.config, "quantization_config")


def test_tensors_count_their_writes():
    tensor = torch.zeros(2)
    before = compat.version(tensor)
    tensor.add_(1)
    assert compat.version(tensor) == before + 1, "torch no longer counts in _version how often a tensor is written to."


def test_leaves_of_nested_arguments():
    assert compat.tree_leaves(([1, {"a": 2}], 3)) == [1, 2, 3], "torch.utils._pytree no longer has tree_leaves."


def test_nothing_is_installed_while_a_model_is_read(monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "0")
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    with compat.offline():
        assert os.environ["PIP_NO_INDEX"] == os.environ["UV_OFFLINE"] == "1"
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert os.environ["UV_OFFLINE"] == "0" and "PIP_NO_INDEX" not in os.environ
    source = inspect.getsource(helpers)
    assert '"pip", "install"' in source, "TransformerLens installs nothing any more: compat.offline need not forbid it."
