"""Models for tests: the real SmolLM2 once per session, and tiny random ones whose activations are really used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

# Deprecation notices of third parties at import time are not ours to raise on.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformer_lens  # noqa: F401
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
        PreTrainedModel,
    )

    import allheads as ah

# A process for each of two cores, or two threads in one.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def _gpt2(**changes: object) -> PreTrainedModel:
    settings = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 96, "n_positions": 64} | changes
    return GPT2LMHeadModel(GPT2Config(**settings, attn_implementation="eager"))


def _opt(**changes: object) -> PreTrainedModel:
    settings = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    } | changes
    return OPTForCausalLM(OPTConfig(**settings, attn_implementation="eager"))


def _llama(**changes: object) -> PreTrainedModel:
    settings = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    } | changes
    return LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager"))


_KINDS = {"gpt2": _gpt2, "opt": _opt, "llama": _llama}
#: First projections of an MLP, scaled up: at the usual initialisation preactivations stay below 1, where every
#: activation looks alike.
_FIRST = ("c_fc.weight", "fc1.weight", "gate_proj.weight")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TransformerBridge]:
    """``tiny("gpt2" | "opt" | "llama", dtype=..., seed=..., **config)``: a random model as a bridge."""

    def make(kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> TransformerBridge:
        torch.manual_seed(seed)
        model = _KINDS[kind](**changes).to(dtype).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
                if name.endswith(_FIRST):
                    parameter.mul_(40.0)
        return build_bridge_from_module(
            model, type(model).__name__, hf_config=model.config, model_name=kind, dtype=dtype
        )

    return make


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """Random ids for the tiny models."""
    return torch.randint(96, (2, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def smollm() -> TransformerBridge:
    """The real SmolLM2-135M, from its package, in float32."""
    return ah.load("smollm2-135m")


@pytest.fixture(scope="session")
def smollm_twin(smollm: TransformerBridge) -> ah.TwinBridge:
    """Its twin at the package's default tolerance."""
    return ah.convert(smollm)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real browser that reaches nothing but the page it opens; a process can have one of them."""
    from tests.plots.browser import CHROMIUM, MISSING, chromium

    if CHROMIUM is None:
        pytest.skip(MISSING)
    with chromium() as opened:
        yield opened
