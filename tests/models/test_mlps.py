"""MLPs are read by what they compute, and refused if that is not understood."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import allheads as ah
from allheads.models.bridge import share
from allheads.models.mlps import check, read_mlps, recognise
from allheads.theory.activations import ACTIVATIONS


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_recognised_by_their_values(name):
    assert recognise(lambda t: ACTIVATIONS[name](t)).name == name


def test_unknown_activations_are_refused():
    with pytest.raises(ah.AllHeadsError, match=r"Mish in layer 3"):
        recognise(nn.Mish(), layer=3)


@pytest.mark.parametrize(
    ("kind", "activation", "gated"), [("gpt2", "gelu_tanh", False), ("opt", "relu", False), ("llama", "silu", True)]
)
def test_reading(tiny, kind, activation, gated):
    source = tiny(kind)
    body = share(source)
    for mlp in read_mlps(source, body):
        assert (mlp.activation.name, mlp.gated) == (activation, gated)
        bridge = source.blocks[mlp.layer].mlp
        assert torch.equal(mlp.weight("in"), bridge.W_in)
        assert torch.equal(mlp.weight("out"), bridge.W_out)
        assert mlp.weight("in").data_ptr() == bridge.W_in.data_ptr()


def test_a_module_with_other_arithmetic_is_refused(tiny):
    source = tiny("llama")
    body = share(source)
    mlp = read_mlps(source, body)[1]
    forward = type(mlp.container).forward
    mlp.container.forward = lambda x: 1.5 * forward(mlp.container, x)
    with pytest.raises(ah.AllHeadsError, match="layer 1 with outputs"):
        check(mlp)


def test_weights_that_are_not_finite_are_refused(tiny):
    source = tiny("gpt2")
    with torch.no_grad():
        source.blocks[1].mlp.W_out[3, 4] = float("nan")
    with pytest.raises(ah.AllHeadsError, match="NaN or infinity in W_out of layer 1"):
        ah.convert(source)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_the_shared_body_is_independent(tiny, tokens, kind):
    source = tiny(kind)
    # Components keep activations of the last forward, which have a gradient.
    assert source(tokens).requires_grad
    before = source(tokens)
    body = share(source)
    names = [name for name, module in body.named_modules() if "Bridge" in type(module).__name__]
    assert names == []
    own = {p.data_ptr() for p in source.original_model.parameters()}
    assert all(p.data_ptr() in own for p in body.parameters())
    assert torch.allclose(body(tokens).logits, before, atol=1e-5)
    body.double()
    assert torch.equal(source(tokens), before)
