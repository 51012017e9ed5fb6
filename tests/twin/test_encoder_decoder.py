"""Encoders and encoder-decoders: three kinds of attention, one naming, and a pattern that is known in advance."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import (
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

import allheads as ah

LENGTH, LETTERS, START = 8, 20, 0


def _strings(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(1, LETTERS, (count, LENGTH), generator=generator)


@pytest.fixture(scope="module")
def reverser():
    """A T5 that has learnt to write a string backwards."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=LETTERS,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=START,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=16,
        attn_implementation="eager",
    )
    model = T5ForConditionalGeneration(config)
    # Cross-attention has no positions of its own: what is written so far, and the encoder, have to carry them.
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(700):
        ids = _strings(64, generator)
        loss = model(input_ids=ids, labels=ids.flip(1)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    bridge = build_bridge_from_module(
        model.eval(), "T5ForConditionalGeneration", hf_config=config, model_name="reverser", dtype=torch.float32
    )
    return bridge, loss.item()


def _shifted(ids: torch.Tensor) -> torch.Tensor:
    """What the decoder reads while it writes the string backwards."""
    return F.pad(ids.flip(1)[:, :-1], (1, 0), value=START)


def test_cross_attention_finds_the_mirrored_token(reverser):
    source, loss = reverser
    twin = ah.convert(source)
    ids = _strings(32, torch.Generator().manual_seed(2))
    inputs = {"input": ids, "decoder_input": _shifted(ids)}
    report = ah.verify(source, twin, inputs)
    assert report.passed, report.failures
    name = twin.head("DL0.X0").hook_prefix + "hook_pattern"
    assert name == "decoder_blocks.0.cross_attn.hook_pattern"
    mirrored = torch.arange(LENGTH).flip(0)
    patterns = []
    for model in (source, twin):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, cache = model.run_with_cache(**inputs, names_filter=[name])
        assert cache[name].shape == (32, 2, LENGTH, LENGTH)
        best = (cache[name].argmax(-1) == mirrored).float().mean((0, 2)).max()
        patterns.append(cache[name])
        assert best >= 0.8, f"{best:.0%} of positions after a loss of {loss:.3f}"
    assert torch.allclose(*patterns, atol=1e-4)


def test_three_kinds_of_attention_have_labels_of_their_own(reverser):
    twin = ah.convert(reverser[0])
    found = {str(head.label): head for head in twin.heads() if head.label.kind != "N"}
    assert sorted(found) == ["DL0.A0", "DL0.A1", "DL0.X0", "DL0.X1", "EL0.A0", "EL0.A1"]
    assert {head.hook_prefix for head in found.values()} == {
        "encoder_blocks.0.attn.",
        "decoder_blocks.0.self_attn.",
        "decoder_blocks.0.cross_attn.",
    }
    assert all(head.hook_prefix + "hook_pattern" in twin.hook_dict for head in found.values())
    neuron = twin.neuron("EL0.N3")[0]
    assert neuron.hook_prefix + "hook_pattern_self" in twin.hook_dict
    assert len({str(head) for head in twin.heads()}) == len(list(twin.heads()))


def test_a_decoder_without_input_is_an_error(reverser):
    source, _ = reverser
    twin = ah.convert(source)
    with pytest.raises(ah.AllHeadsError, match="input for the decoder"):
        ah.verify(source, twin, torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize(("config", "model"), [(BertConfig, BertModel), (RobertaConfig, RobertaModel)])
def test_a_bare_encoder_is_compared_by_its_last_hidden_state(config, model, tmp_path):
    torch.manual_seed(0)
    small = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model(config(**small, intermediate_size=48)).save_pretrained(tmp_path / "sentences")
    source = ah.load(tmp_path / "sentences")
    twin = ah.convert(source)
    ids = torch.arange(3, 14)[None]
    report = ah.verify(source, twin, {"input": ids, "attention_mask": (ids < 12).long()})
    assert report.passed, report.failures
    assert report.output == "last hidden state"
    assert "last hidden state" in str(report)
    assert "top-1" not in str(report)
    with torch.no_grad():
        assert source(ids).shape == (1, 11, 32)
