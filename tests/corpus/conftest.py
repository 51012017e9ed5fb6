"""A GPT-2 whose heads and neurons are set by hand, and a tiny Llama with a tokenizer on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import allheads as ah

VOCABULARY, POSITIONS, D_HEAD, WIDTH = 24, 48, 72, 144
#: Where in the stream token, position, and what came before are written, each as one of many.
TOKEN, POSITION, BEFORE = range(VOCABULARY), range(24, 72), range(72, 96)
#: Neurons of layer 0.
DEAD, ALWAYS, BY_TOKEN, BY_POSITION, BY_BOTH = range(5)


def _blank() -> GPT2LMHeadModel:
    """One-hot tokens and positions, so that norms only scale and shift; heads write nothing, neurons very little."""
    config = GPT2Config(
        n_layer=2, n_embd=WIDTH, n_head=2, vocab_size=VOCABULARY, n_positions=POSITIONS, n_inner=8,
        activation_function="relu", attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.data.normal_(std=1e-3, generator=torch.Generator().manual_seed(1))
        elif "ln_" not in name:
            parameter.data.zero_()
    model.transformer.wte.weight.data[:, list(TOKEN)] = torch.eye(VOCABULARY)
    model.transformer.wpe.weight.data[:, list(POSITION)] = torch.eye(POSITIONS)
    return model


def _read(model: GPT2LMHeadModel, layer: int, head: int, what: str, rows: range, factor: float = 1.0, at: int = 0):
    """Let queries (q), keys (k) or values (v) of a head read these coordinates into its own, from ``at``."""
    start = "qkv".index(what) * WIDTH + head * D_HEAD + at
    weight = model.transformer.h[layer].attn.c_attn.weight.data
    for number, row in enumerate(rows):
        if 0 <= at + number < D_HEAD:
            weight[row, start + number] = factor


def _write(model: GPT2LMHeadModel, layer: int, head: int, rows: range, factor: float = 1.0) -> None:
    weight = model.transformer.h[layer].attn.c_proj.weight.data
    for number, row in enumerate(rows):
        weight[head * D_HEAD + number, row] = factor


@pytest.fixture(scope="session")
def by_hand() -> ah.TwinBridge:
    """L0.A0 looks back by one, L0.A1 for its token's double, L1.A0 is an induction head, L1.A1 takes away."""
    model = _blank()
    _read(model, 0, 0, "q", POSITION, 20.0)
    _read(model, 0, 0, "k", POSITION[:-1], 20.0, at=1)
    _read(model, 0, 0, "v", TOKEN)
    _write(model, 0, 0, BEFORE)
    for what, sign in (("q", 1.0), ("k", -1.0)):
        _read(model, 0, 1, what, TOKEN, 20.0)
        _read(model, 0, 1, what, POSITION, 20.0 * sign, at=VOCABULARY)
    for head, sign in ((0, 1.0), (1, -1.0)):
        _read(model, 1, head, "q", TOKEN, 20.0)
        _read(model, 1, head, "k", BEFORE, 20.0)
        _read(model, 1, head, "v", TOKEN)
        _write(model, 1, head, TOKEN, sign)
    draw = torch.Generator().manual_seed(0)
    into = model.transformer.h[0].mlp.c_fc
    into.bias.data[DEAD], into.bias.data[ALWAYS] = -100.0, 100.0
    into.weight.data[:, BY_TOKEN:] = 0.0
    into.weight.data[list(TOKEN), BY_TOKEN] = torch.randn(VOCABULARY, generator=draw)
    into.weight.data[list(POSITION), BY_POSITION] = torch.randn(POSITIONS, generator=draw)
    into.weight.data[:, BY_BOTH] = into.weight.data[:, BY_TOKEN] + into.weight.data[:, BY_POSITION]
    into.bias.data[BY_TOKEN : BY_BOTH + 1] = 20.0
    return ah.convert(build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config, model_name="by hand"))


WORDS = [f"word{number}" for number in range(94)]


def _saved(folder: Path, *, opening: bool) -> Path:
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<s>": 0, "?": 1} | {w: n for n, w in enumerate(WORDS, 2)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if opening:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="?").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in a folder; its tokenizer knows the words ``word0`` to ``word93``."""
    return _saved(tmp_path_factory.mktemp("small"), opening=False)


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> ah.TwinBridge:
    """The same with a tokenizer that begins every text with a token of its own."""
    return ah.convert(ah.load(_saved(tmp_path_factory.mktemp("opened"), opening=True)))


@pytest.fixture(scope="session")
def small_twin(small: Path) -> ah.TwinBridge:
    return ah.convert(ah.load(small))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 lines of random words, frequent ones far more often."""
    draw = torch.Generator().manual_seed(5)
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    ids = (torch.rand(300, 16, generator=draw) ** 3 * len(WORDS)).long()
    path.write_text("".join(" ".join(WORDS[n] for n in row) + "\n" for row in ids.tolist()), encoding="utf-8")
    return path
