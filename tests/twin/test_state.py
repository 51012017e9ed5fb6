"""A twin is kept whole by torch's own means: state dicts, copies, optimisers; and an edit is done, or not at all."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

import allheads as ah
from allheads_labs import zoo

#: A module of three projections, a joint one, parts in the layer, experts.
KINDS = ["LlamaForCausalLM", "Phi3ForCausalLM", "OPTForCausalLM", "MixtralForCausalLM"]


def _edited(bridge):
    twin = ah.convert(bridge)
    with twin.banks[0].edit() as heads:
        heads.W_O[0] *= 3.0
        heads.bias_keys *= 1.01
    return twin


@pytest.mark.parametrize("name", KINDS)
def test_an_edited_twin_comes_back_from_its_state_to_the_last_bit(name, tmp_path):
    sample = zoo.build(name)
    edited, other = _edited(sample.bridge), ah.convert(zoo.build(name, seed=1).bridge)
    assert not torch.equal(sample.run(edited), sample.run(other))
    save_file({key: t.clone() for key, t in edited.state_dict().items()}, tmp_path / "state.safetensors")
    found = other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert not found.missing_keys and not found.unexpected_keys
    assert torch.equal(sample.run(edited), sample.run(other))


@pytest.mark.parametrize("name", KINDS)
def test_the_state_has_every_weight_of_a_neuron_once(name):
    twin = _edited(zoo.build(name).bridge)
    state = twin.state_dict()
    assert len({(t.data_ptr(), t.shape) for t in state.values()}) >= len(state) - 1  # tied embeddings
    stored = {t.untyped_storage().data_ptr() for t in state.values()}
    assert all(p.untyped_storage().data_ptr() in stored for bank in twin.banks for p in bank.everything())
    assert not any(tensor.requires_grad for tensor in state.values())


def test_a_state_without_the_edits_is_refused_by_the_layer(tiny):
    twin = _edited(tiny("gpt2"))
    before = twin.banks[0].edited.W_O.clone()
    with pytest.raises(ah.AllHeadsError, match=r"edited heads at transformer\.h\.0\.mlp\.heads"):
        twin.load_state_dict(tiny("gpt2").state_dict())
    assert torch.equal(twin.banks[0].edited.W_O, before)


def test_a_state_of_another_model_leaves_no_edits_behind(tiny):
    state = _edited(tiny("gpt2")).state_dict()
    twin = ah.convert(tiny("gpt2", n_layer=3))
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict(state)
    assert twin.banks[0].edited is None


@pytest.mark.parametrize("first", [True, False])
def test_an_edit_that_raises_is_undone(tiny, tokens, first):
    twin = ah.convert(tiny("llama"))
    if not first:
        with twin.banks[1].edit() as heads:
            heads.W_O[3] *= 2.0
    before = twin(tokens)

    def edit():
        with twin.banks[1].edit() as heads:
            heads.W_O[5] = 7.0
            heads.bias_keys = torch.nn.Parameter(torch.zeros_like(heads.bias_keys))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit()
    assert (twin.banks[1].edited is None) == first
    assert torch.equal(twin(tokens), before)


@pytest.mark.parametrize(("name", "value"), [("W_O", torch.nan), ("W_Q", torch.inf), ("bias_offsets", torch.inf)])
def test_an_edit_that_leaves_no_number_is_refused_and_undone(tiny, tokens, name, value):
    twin = ah.convert(tiny("gpt2"))
    before = twin(tokens)

    def edit():
        with twin.banks[0].edit() as heads:
            getattr(heads, name)[4] = value

    with pytest.raises(ah.AllHeadsError, match=rf"NaN or infinity in {name}\[4\]"):
        edit()
    assert torch.equal(twin(tokens), before)


def test_a_bias_token_may_be_masked(tiny):
    twin = ah.convert(tiny("gpt2"))
    with twin.banks[0].edit() as heads:
        heads.bias_offsets[4] = -torch.inf
    assert twin.banks[0].edited is not None


def test_what_edited_neurons_shared_is_refused(tiny):
    twin = _edited(tiny("llama"))
    for name in ("W_in", "W_gate", "W_out", "b_in"):
        with pytest.raises(ah.AllHeadsError, match="got edited heads"):
            getattr(twin.blocks[0].mlp, name)
    assert torch.equal(twin.blocks[1].mlp.W_in, twin.banks[1].W_in)


def test_a_copy_reads_its_own_weights(tiny, tokens):
    twin = ah.convert(tiny("llama"))
    before = twin(tokens)
    copied = copy.deepcopy(twin)
    assert torch.equal(copied(tokens), before)
    with torch.no_grad():
        copied.blocks[0].mlp.out.weight.zero_()
    assert torch.equal(twin(tokens), before)
    assert not torch.equal(copied(tokens), before)
    assert torch.equal(copied.banks[0].W_out, torch.zeros_like(copied.banks[0].W_out))


def test_optimisers_train_neurons_and_edits(tiny, tokens):
    twin = _edited(tiny("llama"))
    names = [name for name, _ in twin.named_parameters()]
    assert any("heads.edited.W_O" in name for name in names)
    assert sum("up_proj" in name for name in names) == len(twin.banks)
    optimiser = torch.optim.SGD(twin.parameters(), 0.1)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = twin(tokens, return_type="loss")
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert twin.banks[0].edited.W_O.grad.abs().max() > 0
    assert twin.blocks[1].mlp.gate.weight.grad.abs().max() > 0


def test_what_neurons_share_is_changed_in_place_or_not_at_all(tiny):
    bank = ah.convert(tiny("gpt2")).banks[0]
    with torch.no_grad():
        bank.W_out *= 2.0
        for other in (bank.W_out.clone(), bank.W_out[:3]):
            with pytest.raises(ah.AllHeadsError, match="an assignment to W_out"):
                bank.W_out = other
