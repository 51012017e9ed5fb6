"""Twins of small random models that differ in how sublayers read and write."""

from __future__ import annotations

import pytest

import allheads as ah
from allheads_labs import zoo

#: Grouped keys and RMSNorm; LayerNorm, biases and learned positions; layers side by side and partial rotary; gains of
#: 1 + w and norms behind sublayers; scaled embeddings and residuals.
FAMILIES = [
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "GraniteForCausalLM",
]


@pytest.fixture(scope="session")
def twin_of():
    """``twin_of(family)``, made once."""
    made: dict[str, ah.TwinBridge] = {}

    def make(name):
        if name not in made:
            made[name] = ah.convert(zoo.build(name).bridge)
        return made[name]

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def twin(request, twin_of):
    return twin_of(request.param)
