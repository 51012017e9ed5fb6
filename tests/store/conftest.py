"""A tiny model of every kind of network, as the bridge that anyone would build, and as a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.one_thread import one_thread  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FalconH1Config,
    FalconH1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import allheads as ah

VOCABULARY = 96
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
_ONE_LAYER = _SIZES | {"num_hidden_layers": 1}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def _t5() -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": VOCABULARY}
    return T5ForConditionalGeneration(T5Config(**sizes, feed_forward_proj="gated-gelu", decoder_start_token_id=0))


def _bart() -> PreTrainedModel:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": VOCABULARY}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
    return BartForConditionalGeneration(BartConfig(**sizes, **heads, encoder_ffn_dim=48, decoder_ffn_dim=48))


def _mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**_ONE_LAYER, **_HEADS, num_local_experts=4, num_experts_per_tok=2))


def _falcon_h1() -> PreTrainedModel:
    """Factors on the gate and on the output of its MLPs."""
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    return FalconH1ForCausalLM(FalconH1Config(**_ONE_LAYER, **_HEADS, **mamba, mlp_multipliers=[0.7, 0.3]))


_KINDS = {"t5": _t5, "bart": _bart, "mixtral": _mixtral, "falcon_h1": _falcon_h1}


@pytest.fixture(scope="session")
def any_kind(tiny: Callable[..., TransformerBridge]) -> Callable[..., TransformerBridge]:
    """``any_kind("llama" | "gpt2" | "opt" | "t5" | "bart" | "mixtral" | "falcon_h1", dtype=...)``, made anew."""

    def make(kind: str, dtype: torch.dtype = torch.float32) -> TransformerBridge:
        if kind not in _KINDS:
            return tiny(kind, dtype=dtype, **({"num_hidden_layers": 2} if kind == "llama" else {}))
        torch.manual_seed(0)
        model = _KINDS[kind]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5.0)
        model.set_attn_implementation("eager")
        return build_bridge_from_module(model.to(dtype), type(model).__name__, hf_config=model.config, model_name=kind)

    return make


@pytest.fixture(scope="session")
def source_of(any_kind: Callable[..., TransformerBridge]) -> Callable[..., TransformerBridge]:
    """The same, made once: to load with, not to convert and change."""
    return cache(any_kind)


@pytest.fixture(scope="session")
def run(tokens: Tensor) -> Callable[[TransformerBridge], Tensor]:
    """Logits on the same random ids, for decoders and encoder-decoders."""

    def logits(model: TransformerBridge) -> Tensor:
        extra: dict[str, Any] = {}
        if getattr(model.original_model.config, "is_encoder_decoder", False):
            extra = {"decoder_input": tokens[:, :5]}
        with torch.no_grad():
            return model(tokens, **extra)

    return logits


@cache
def _tokenizer(adds_bos: bool) -> PreTrainedTokenizerFast:
    ids = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", "a", "the", "cat", "sat"])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """``model_folder(adds_bos=..., **config)``: a small Llama on disk, with a tokenizer."""

    def write(adds_bos: bool = False, seed: int = 0, **changes: object) -> Path:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(_SIZES | _HEADS | changes)))
        folder = tmp_path / "tiny-llama"
        model.save_pretrained(folder)
        _tokenizer(adds_bos).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="package")
def _saved(
    source_of: Callable[..., TransformerBridge], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TransformerBridge]:
    source = source_of("llama")
    twin = ah.convert(source)
    with twin.banks[1].edit() as heads:
        heads.W_O[3] *= 2.0
    return ah.save(twin, tmp_path_factory.mktemp("saved") / "twin"), source


@pytest.fixture
def saved(_saved: tuple[Path, TransformerBridge], tmp_path: Path) -> tuple[Path, TransformerBridge]:
    """A saved twin with one edited layer, for the test to spoil, and its source."""
    folder, source = _saved
    shutil.copytree(folder, tmp_path / "saved")
    return tmp_path / "saved", source
