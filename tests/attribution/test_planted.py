"""Small trained networks in which it is known which expert, and which token, decides: attribution finds them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import BartConfig, BartForConditionalGeneration, MixtralConfig, MixtralForCausalLM

import allheads as ah

GROUPS, WORDS = 4, 32
LENGTH = 6


def bridged(model, name):
    return build_bridge_from_module(model.eval().double(), name, hf_config=model.config, dtype=torch.float64)


@pytest.fixture(scope="module")
def experts():
    """Each expert is trained to say what follows the words of one group: word w is answered by ``w xor 1``."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=GROUPS,
        num_experts_per_tok=2,
        max_position_embeddings=16,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = MixtralForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    routed = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda _, args, out: routed.append(out[0]))
    for _ in range(150):
        ids = torch.randint(WORDS, (64, LENGTH))
        logits = model(ids).logits
        loss = F.cross_entropy(logits.flatten(0, 1), (ids ^ 1).flatten())
        loss = loss + F.cross_entropy(routed.pop().view(-1, GROUPS), ids.flatten() % 8 // 2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    model.model.layers[0].mlp.gate._forward_hooks.clear()
    return ah.convert(bridged(model, "MixtralForCausalLM"))


@pytest.mark.parametrize("word", range(0, WORDS, 5))
def test_the_expert_that_knows_the_answer(experts, word):
    ids = torch.tensor([3, 9, 20, 14, 6, word])
    found = ah.attribute(experts, ids, (word ^ 1, (word + 4) % WORDS), rule="value")
    by_expert = torch.stack([found.effects[f"L0.M{expert}.N"].sum() for expert in range(GROUPS)])
    assert int(by_expert.argmax()) == word % 8 // 2
    assert found.top(1, kind="N")[0].label.startswith(f"L0.M{word % 8 // 2}.")


@pytest.fixture(scope="module")
def reversing():
    """A decoder that writes what its encoder reads, from the end to the beginning."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=WORDS,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=16,
        dropout=0.0,
        attn_implementation="eager",
    )
    model = BartForConditionalGeneration(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(500):
        ids = torch.randint(4, WORDS, (64, LENGTH))
        written = torch.cat([torch.full((64, 1), 2), ids.flip(1)[:, :-1]], 1)
        loss = F.cross_entropy(model(ids, decoder_input_ids=written).logits.flatten(0, 1), ids.flip(1).flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    return ah.convert(bridged(model, "BartForConditionalGeneration"))


@pytest.mark.parametrize("position", range(LENGTH))
def test_the_token_of_the_encoder_that_is_written(reversing, position):
    ids = torch.tensor([[7, 19, 11, 28, 5, 23]])
    written = torch.cat([torch.tensor([[2]]), ids.flip(1)[:, :-1]], 1)
    source = LENGTH - 1 - position
    target = (int(ids[0, source]), int(ids[0, (source + 1) % LENGTH]))
    found = ah.attribute(reversing, {"input": ids, "decoder_input": written}, target, position=position, rule="value")
    tokens = found.begins["embed"]
    assert int(tokens.argmax()) == source
    assert tokens[source] > 2 * tokens[torch.arange(LENGTH) != source].max()
    assert found.top(1, kind="X")[0].position == position
