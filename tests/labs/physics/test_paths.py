"""Paths: pushes sum to steps, and the landscape is the potential where the head stands."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import physics
from allheads_labs.physics.climbing import climbing, through
from allheads_labs.physics.paths import Trajectories, principal


def _seen(twin, ids, name):
    with torch.no_grad():
        return twin.run_with_cache(ids, names_filter=[name])[1][name][0]


#: Steps of both sublayers one after the other, with biases, and side by side.
@pytest.mark.parametrize("family", ["LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM"])
def test_pushes_are_all_of_a_step(twin_of, family):
    twin, ids = twin_of(family)
    found = physics.trajectories(twin, ids)
    for layer in range(2):
        assert torch.equal(found.stream[layer], _seen(twin, ids, f"blocks.{layer}.hook_resid_pre"))
        total = found.heads[layer].sum(0) + found.neurons[layer].sum(0) + found.rest[layer]
        assert torch.allclose(total, found.lengths[layer], atol=1e-6)
        along = torch.nn.functional.normalize(found.steps[layer], dim=-1)
        head = _seen(twin, ids, f"blocks.{layer}.attn.hook_z").reshape(-1, 4, 8)[:, 3]
        head = head @ twin.blocks[layer].attn.W_O[3].detach()
        assert torch.allclose(found.heads[layer, 3], (head * along).sum(-1), atol=1e-9)
        neuron = _seen(twin, ids, f"blocks.{layer}.mlp.hook_post")[:, 5, None] * twin.banks[layer].W_out[5].detach()
        assert torch.allclose(found.neurons[layer, 5], (neuron * along).sum(-1), atol=1e-9)
    biased = family != "LlamaForCausalLM"
    assert found.rest.any() == biased
    assert found.stream.shape[0] == 3
    assert len(found.tokens) == ids.shape[1]


def test_who_pushed_most(twin_of):
    found = physics.trajectories(*twin_of("LlamaForCausalLM"))
    every = torch.cat([found.heads[1, :, 4], found.neurons[1, :, 4]])
    first, *others = found.pushed(4, 1, 6)
    best = int(every.abs().argmax())
    assert first.label == (f"L1.A{best}" if best < 4 else f"L1.N{best - 4}")
    assert first.push == float(every[best])
    assert [abs(each.push) for each in others] == sorted((abs(each.push) for each in others), reverse=True)
    assert len(others) == 5


def _made(stream):
    """Paths that were drawn by hand."""
    none = torch.zeros(len(stream) - 1, 1, stream.shape[1])
    projected, explained = principal(stream)
    return Trajectories(None, None, ["a"] * stream.shape[1], stream, projected, explained, none, none, none[:, 0])


def test_lengths_and_turns():
    points = torch.tensor([[0.0, 0, 0], [2, 0, 0], [2, 3, 0], [2, 1, 0], [2, 0, 0]])[:, None]
    found = _made(points)
    assert found.lengths[:, 0].tolist() == [2.0, 3.0, 2.0, 1.0]
    assert found.turns[:, 0].tolist() == pytest.approx([90.0, 180.0, 0.0], abs=0.1)


def test_directions_are_those_of_the_largest_variance_of_normed_streams():
    draw = torch.Generator().manual_seed(0)
    stream = torch.randn(6, 5, 10, generator=draw) * torch.logspace(1, -2, 10)
    projected, explained = principal(stream)
    normed = stream / stream.square().mean(-1, keepdim=True).sqrt()
    flat = (normed - normed.mean((0, 1))).flatten(0, 1).double()
    sizes = torch.linalg.svdvals(flat).square()
    assert torch.allclose(explained, sizes[:3] / sizes.sum())
    assert torch.allclose(projected.flatten(0, 1).square().sum(0), sizes[:3])
    # The length of a stream is not seen.
    longer = stream * torch.rand(6, 5, 1, generator=draw).add(0.5)
    assert torch.allclose(principal(longer)[0], projected, atol=1e-5)


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_energy_is_the_potential_where_the_head_stands(twin_of, family):
    twin, ids = twin_of(family)
    found = physics.trajectories(twin, ids)
    alone = physics.potential(twin, ids, "L1.A2").U
    energy = found.energy("L1.A2")
    assert energy.shape == (3, ids.shape[1])
    assert torch.allclose(energy[1], alone, atol=1e-5)
    assert not torch.allclose(energy[0], alone, atol=1e-3)
    every = sum(found.energy(f"L1.A{number}") for number in range(4))
    assert torch.allclose(found.energy(1), every, atol=1e-9)


def test_energy_of_a_neuron_is_its_gate(twin_of):
    """It reads behind attention, through its own norm: its potential is that of the preactivation there."""
    twin, ids = twin_of("LlamaForCausalLM")
    found = physics.trajectories(twin, ids)
    bank, norm = twin.banks[1], twin.blocks[1].ln2
    for point in range(3):
        x = found.stream[point] * (found.stream[point].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        t = (x * norm.original_component.weight.detach()) @ bank.W_gate[:, 3].detach()
        expected = -bank.gates.gates[0](t).log()
        assert torch.allclose(found.energy("L1.N3.0")[point], expected, atol=1e-4)


def test_layers_that_add_something_else_are_refused(twin_of, tiny, tokens):
    for family in ("Gemma2ForCausalLM", "GraniteForCausalLM"):
        with pytest.raises(ah.AllHeadsError, match="layers that add what their heads and neurons write"):
            physics.trajectories(*twin_of(family))
    twin = ah.convert(tiny("llama"))
    with twin.banks[0].edit() as heads:
        heads.W_O[0] *= 2
    with pytest.raises(ah.AllHeadsError, match="neurons whose heads share their weights"):
        physics.trajectories(twin, tokens[0])


def test_requests_that_make_no_sense(twin_of):
    found = physics.trajectories(*twin_of("LlamaForCausalLM"))
    for call, message in {
        lambda: found.pushed(99, 0): "a position from",
        lambda: found.pushed(0, 2): "layers from 0 to 1, got \\[2\\]",
        lambda: found.energy(2): "layers from 0 to 1, got \\[2\\]",
        lambda: found.energy("L0.N3"): "one head",
    }.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()


def test_a_head_that_climbs_is_seen_to_climb(gpt2):
    """Values as keys, and output as queries: what it writes is the gradient, and the reverse of it downhill."""
    source, ids = gpt2
    attn = source.original_model.transformer.h[1].attn
    with torch.no_grad():
        for number, sign in ((1, 1.0), (2, -1.0)):
            q, k, v = (slice(part * 32 + number * 8, part * 32 + number * 8 + 8) for part in range(3))
            into, out = (getattr(part, "original_component", part) for part in (attn.c_attn, attn.c_proj))
            into.weight[:, v], into.bias[v] = into.weight[:, k], into.bias[k]
            out.weight[number * 8 : number * 8 + 8] = sign * into.weight[:, q].T
    found = climbing(ah.convert(source), ids, [1], 3)
    assert found.held.shape == found.whole.shape == (1, 1, 4)
    assert found.other.shape == (1, 3, 1, 4)
    up, down = found.held[0, 0, 1:3].tolist()
    assert up > 0.8 > -0.8 > down
    assert found.held[0, 0, [0, 3]].abs().max() < 0.5
    assert (found.other[0, :, 0, 1] < up).all()
    assert not torch.allclose(found.held, found.whole, atol=1e-3)


def test_gradients_through_a_norm_are_those_of_small_steps(twin_of):
    from allheads.twin.wiring import read_wiring

    twin, _ = twin_of("GPT2LMHeadModel")
    norm = read_wiring(twin).attention_branch(1).before
    draw = torch.Generator().manual_seed(0)
    stream, gradient, step = (torch.randn(3, 32, generator=draw).double() for _ in range(3))
    small = 1e-6
    slope = ((norm(stream + small * step) - norm(stream - small * step)) * gradient).sum(-1) / (2 * small)
    assert torch.allclose((through(norm, stream, gradient) * step).sum(-1), slope, atol=1e-7)
    assert torch.equal(through(None, stream, gradient), gradient)
