"""Attention that is more than four matrices a head, read by its weights: compared with gradients of whole runs.

Latents with a norm between two maps, values that are normalised, gates on what is carried, layers of their own widths.
"""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.attribution.freezing import freezing
from allheads.attribution.rules import RULES
from allheads.twin.wiring import read_wiring
from allheads.weights import factors
from allheads_labs import zoo
from allheads_labs.zoo import reading

LATENT = ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM", "GlmMoeDsaForCausalLM"]
NORMALISED = ["Gemma4ForCausalLM", "Gemma4UnifiedForConditionalGeneration"]
GATED = ["AfmoeForCausalLM", "LagunaForCausalLM", "Qwen3NextForCausalLM", "Qwen3_5ForCausalLM"]
SOURCE = 2


@pytest.fixture(scope="module")
def twins():
    made = {}

    def make(name):
        if name not in made:
            sample = zoo.build(name, dtype=torch.float64)
            made[name] = sample, ah.convert(sample.bridge)
        return made[name]

    return make


def _gradients(twin, ids, shown, position):
    """The gradients of what passes a hook point at a position, by the activations of neurons of layer 0 at `SOURCE`."""
    neurons, seen = f"{twin.layers[0].location.prefix}hook_post", {}

    def cut(value, hook):
        seen["leaf"] = value.detach()[0, SOURCE].requires_grad_()
        return torch.cat([value[:, :SOURCE].detach(), seen["leaf"][None, None], value[:, SOURCE + 1 :].detach()], 1)

    def keep(value, hook):
        # Values of latent attention are shown head by head.
        by_position = value[0] if value.shape[1] == ids.shape[1] else value[0].transpose(0, 1)
        seen["shown"] = by_position[position].flatten()
        return value

    with freezing(twin, RULES["half"]), torch.enable_grad():
        twin(ids)
        with twin.hooks(fwd_hooks=[(neurons, cut), (shown, keep)]):
            twin(ids)
        rows = [torch.autograd.grad(one, seen["leaf"], retain_graph=True)[0] for one in seen["shown"]]
    return torch.stack(rows).double()


def test_norms_are_measured_when_nothing_watches_them():
    """Routers of Gemma 4 have a norm of their own, which no component wraps: the run is cut there as well."""
    branches = read_wiring(ah.convert(zoo.build("Gemma4ForCausalLM", dtype=torch.float64).bridge)).branches
    assert branches["L1.A"].values and branches["L1.A"].scores


#: Gemma 4 with experts has a norm behind the sum of these and its MLP, which counts for whoever reads behind it.
@pytest.mark.parametrize("name", [*LATENT, "Gemma4UnifiedForConditionalGeneration", *GATED])
def test_what_heads_read_by_their_values_is_what_neurons_move(twins, name):
    """The score of a neuron and a head is how far the neuron's write moves what the head writes, in the frozen twin."""
    sample, twin = twins(name)
    ids = sample.inputs["input"]
    # Gates multiply what is carried behind the values; norms of values stand between these and that.
    carried = ("z", -1) if name in NORMALISED else ("v", SOURCE)
    moved = _gradients(twin, ids, f"blocks.1.attn.hook_{carried[0]}", carried[1])
    stream = _gradients(twin, ids, "blocks.1.hook_resid_pre", SOURCE)
    o = twin.blocks[1].attn.o.original_component.weight.detach().double()
    behind = getattr(twin.blocks[1], "ln1_post", None)
    if behind is not None:  # an RMSNorm of ones is its gain
        o = behind.original_component(torch.ones(twin.cfg.d_model).to(o)).detach()[:, None] * o
    heads = twin.index.attention["L1", "A"].n_heads
    width = o.shape[1] // heads
    moved = moved.unflatten(0, (-1, width))
    found = {(p.writer, p.reader): p.score for p in ah.weights.composition(twin, "neuron->V", k=10**6)}
    for head in range(heads):
        of_head = moved[head * len(moved) // heads]
        written = (o[:, head * width : (head + 1) * width] @ of_head).norm(dim=0) / stream.norm(dim=0)
        scores = torch.tensor([found[f"L0.N{n}", f"L1.A{head}"] for n in range(len(written))]).double()
        assert written.max() > 2 * written.min() > 0
        assert torch.allclose(scores / scores.norm(), written / written.norm(), atol=1e-6)


@pytest.mark.parametrize("name", LATENT + NORMALISED)
def test_circuits_of_heads_are_what_runs_on_single_tokens_carry(twins, name):
    sample, twin = twins(name)
    assert reading.CAPABILITIES["circuit of a head"](reading.Subject(sample, twin)) < 1e-6
    circuit = ah.weights.circuit(twin, "L1.A1")
    assert not circuit.gated and not circuit.unread


@pytest.mark.parametrize("name", GATED)
def test_gates_are_named(twins, name):
    sample, twin = twins(name)
    assert reading.CAPABILITIES["circuit of a head"](reading.Subject(sample, twin)) < 1e-6
    assert ah.weights.circuit(twin, "L1.A1").gated
    assert "L1" in ah.weights.composition(twin, "neuron->V", k=1).gated
    assert ah.weights.composition(twin, "neuron->Q", k=1).gated == ()


def test_a_gate_that_answers_to_values_is_none(twins):
    """What is carried times a function of itself is no gate, and not read."""
    _, twin = twins("AfmoeForCausalLM")
    component = twin.index.attention["L1", "A"].module

    def squared(module, args):
        return (args[0] * args[0].abs(), *args[1:])

    handle = component.o.register_forward_pre_hook(squared)
    try:
        branch = read_wiring(twin).branches["L1.A"]
    finally:
        handle.remove()
    assert not branch.values


@pytest.mark.parametrize("name", LATENT)
def test_scores_of_latent_heads(twins, name):
    """Keys of two scales have no composition, and scores of tokens: those of a run on the two."""
    _, twin = twins(name)
    with pytest.raises(ah.AllHeadsError, match="latent attention that normalises a part of it"):
        ah.weights.composition(twin, "neuron->K")
    pairs = ah.weights.circuit(twin, "L0.A1", k=3).attends((3,))
    circuit = ah.weights.circuit(twin, "L0.A1", k=10**4)
    assert [pair.value for pair in circuit.attends((3,))[:3]] == [pair.value for pair in pairs]
    for pair in pairs:
        ids = torch.full((1, 6), pair.first)
        ids[0, 1], ids[0, 2] = pair.second, pair.first
        point = "blocks.0.attn.hook_pattern"
        with torch.no_grad():
            pattern = twin.run_with_cache(ids, names_filter=[point])[1][point][0, 1, 4].double()
        own = next(p for p in circuit.attends((2,)) if (p.first, p.second) == (pair.first, pair.first))
        assert float(pattern[1].log() - pattern[2].log()) == pytest.approx(pair.value - own.value, abs=1e-5)


def test_values_of_two_scales_are_refused(twins):
    _, twin = twins("DeepseekV3ForCausalLM")
    branch = read_wiring(twin).branches["L1.A"]
    for side in "QV":
        assert branch.attention.directions(side).shape[1] == twin.cfg.d_model
    with pytest.raises(ah.AllHeadsError, match="W_K up to one scale"):
        factors.reads(read_wiring(twin), "Q", branch, [0])
