"""Tiny random twins in float64, and one with a tokenizer that was made for the occasion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import allheads as ah
from allheads_labs import zoo
from allheads_labs.kit.text import documentation

#: Enough for tiny models.
TEXTS = [text[:4000] for text in documentation()[:12]]


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def twin_of():
    """``twin_of(family)`` and ids for it, in float64, made once."""
    made: dict[str, tuple[ah.TwinBridge, torch.Tensor]] = {}

    def make(name: str) -> tuple[ah.TwinBridge, torch.Tensor]:
        if name not in made:
            sample = zoo.build(name, dtype=torch.float64)
            made[name] = ah.convert(sample.bridge), sample.inputs["input"]
        return made[name]

    return make


@pytest.fixture
def gpt2(tiny):
    """A GPT-2 of its own for every test, with its network, to write weights into."""
    source = tiny("gpt2", dtype=torch.float64)
    return source, torch.arange(12)[None]


@pytest.fixture(scope="session")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in a folder, whose tokenizer has learned from Python's documentation."""
    folder = tmp_path_factory.mktemp("worded")
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pairs.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=pairs).save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 400}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def worded_twin(worded: Path) -> ah.TwinBridge:
    return ah.convert(ah.load(worded))
