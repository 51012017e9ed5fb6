"""Counts from a configuration alone, against models that were really built."""

from __future__ import annotations

import json

import pytest
from transformers import BertConfig, BloomConfig, GPT2Config, LlamaConfig, T5Config
from typer.testing import CliRunner

import allheads as ah
from allheads.cli.main import app
from allheads.models.shapes import KNOWN, shape_of
from allheads.pure.purified import purified


def gpt2(n_layer: int, n_embd: int, n_head: int, n_positions: int = 1024) -> GPT2Config:
    return GPT2Config(n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_positions=n_positions)


def llama(layers: int, size: int, mlp: int, heads: int, groups: int, vocabulary: int = 128256, **more) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=size,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        **more,
    )


CONFIGURATIONS = {
    "smollm2-135m": llama(30, 576, 1536, 9, 3, 49152, tie_word_embeddings=True),
    "gpt2-small": gpt2(12, 768, 12),
    "gpt2-medium": gpt2(24, 1024, 16),
    "gpt2-large": gpt2(36, 1280, 20),
    "gpt2-xl": gpt2(48, 1600, 25),
    "llama-3-8b": llama(32, 4096, 14336, 32, 8),
    "llama-3-70b": llama(80, 8192, 28672, 64, 8),
    "gpt3-175b": gpt2(96, 12288, 96, 2048),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_shapes_are_those_of_their_configurations(name):
    read = shape_of(CONFIGURATIONS[name])
    assert vars(read) | {"name": name} == vars(KNOWN[name])


def test_smollm_itself(smollm, smollm_twin):
    assert vars(shape_of(smollm)) | {"name": ""} == vars(KNOWN["smollm2-135m"]) | {"name": ""}
    counted = ah.cost(smollm)
    assert counted.neuron_heads == sum(bank.d_mlp * bank.gates.heads for bank in smollm_twin.banks) == 92160
    assert counted.attention_heads == 270
    assert counted.pattern_bytes_self == 92160 * counted.n_ctx * 4


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_parameters_written_out(tiny, kind):
    source = tiny(kind)
    counted = ah.cost(source)
    twin = ah.convert(source)
    _, pure = purified(twin)
    neurons = [heads for sublayer in pure.sublayers if sublayer.name.endswith("N") for heads in sublayer.heads]
    neurons = [heads for heads in neurons if heads.W_Q is not None]
    assert counted.neuron_heads == sum(len(heads.W_O) for heads in neurons)
    names = ("W_Q", "W_V", "W_O", "bias_keys", "bias_offsets")
    written = sum(heads.tensors()[name].numel() for heads in neurons for name in names)
    written += 2 * counted.neuron_heads  # b_Q and b_V, absent where they are zero
    mlp = sum(w.numel() for bank in twin.banks for w in (bank.W_in, bank.W_gate, bank.W_out) if w is not None)
    assert counted.parameters_as_heads == counted.parameters - mlp + written


def test_more_accuracy_costs_more():
    loose, tight = (ah.cost("llama-3-8b", tolerance=t) for t in (1e-3, 1e-7))
    assert loose.pattern_bytes_slots < tight.pattern_bytes_slots
    assert loose.flops_source == tight.flops_source < loose.flops_slots < tight.flops_slots < tight.flops_literal
    assert tight.certified_error <= 1e-7


def test_dense_patterns_grow_with_the_square_of_the_context():
    short, long = (ah.cost("gpt2-small", n_ctx=n) for n in (512, 1024))
    assert 3.9 < long.pattern_bytes_dense / short.pattern_bytes_dense < 4
    assert long.pattern_bytes_self == 2 * short.pattern_bytes_self


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("gpt2-smal", {}, "gpt2-small"),
        (3, {}, "got int"),
        (T5Config(), {}, "decoder"),
        ("gpt2-small", {"n_ctx": 0}, "at least one token"),
        ("gpt2-small", {"tolerance": 1e-30}, "tolerance 1e-30"),
    ],
)
def test_bad_input(model, options, reason):
    with pytest.raises(ah.AllHeadsError, match=reason):
        ah.cost(model, **options)


def test_configurations_without_a_number_are_named():
    with pytest.raises(ah.AllHeadsError, match="without n_ctx"):
        ah.cost(BloomConfig(n_layer=1, hidden_size=8, n_head=2, vocab_size=9))
    assert shape_of(BertConfig(is_decoder=True)).gated is False


def test_the_command():
    done = CliRunner().invoke(app, ["cost", "gpt3-175b", "--json"])
    assert done.exit_code == 0
    (row,) = json.loads(done.output)
    assert row["neurons"] == 96 * 49152
    table = CliRunner().invoke(app, ["cost"]).output
    assert all(name in table for name in KNOWN)
    assert CliRunner().invoke(app, ["cost", "gpt5"]).exit_code == 2
