"""MLPs are read by what they compute, and refused if that is not understood."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import allheads as ah
from allheads.gates.activations import ACTIVATIONS
from allheads.models.bridge import share
from allheads.models.formulas import find_formula
from allheads.models.mlps import activation_with_values
from allheads.models.read_mlps import read_mlps

#: gelu_fast is gelu_tanh with a constant rounded to ten digits: nothing in float32 tells them apart.
DISTINCT = sorted(set(ACTIVATIONS) - {"gelu_fast", "linear"})


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_recognised_by_their_values(name):
    assert activation_with_values(lambda t: ACTIVATIONS[name](t)).name == name


def test_unknown_activations_are_refused():
    with pytest.raises(ah.AllHeadsError, match=r"Mish in L3"):
        activation_with_values(nn.Mish(), "L3")


class Odd(nn.Module):
    """An MLP with names that nobody would guess, and arithmetic on request."""

    def __init__(self, gated: bool, joint: bool, arithmetic) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.alpha = nn.Linear(16, 48 if joint else 24)
        self.beta = nn.Linear(16, 24)
        self.omega = nn.Linear(24, 16)
        self.gated, self.joint, self.arithmetic = gated, joint, arithmetic

    def forward(self, stream):
        first = self.alpha(stream)
        if self.joint:
            return self.omega(self.arithmetic(*first.chunk(2, -1)))
        if self.gated:
            return self.omega(self.arithmetic(first, self.beta(stream)))
        return self.omega(self.arithmetic(first, None))


@pytest.mark.parametrize("name", DISTINCT)
def test_roles_are_found_without_names(name):
    f = ACTIVATIONS[name]
    plain = find_formula(Odd(False, False, lambda t, _: f(t)), 16)
    gated = find_formula(Odd(True, False, lambda g, u: f(g) * u), 16)
    swapped = find_formula(Odd(True, False, lambda u, g: f(g) * u), 16)
    joint = find_formula(Odd(True, True, lambda g, u: f(g) * u), 16)
    assert (plain.activation.name, plain.gate, plain.value.name) == (name, None, "alpha")
    assert (gated.activation.name, gated.gate.name, gated.value.name) == (name, "alpha", "beta")
    assert (swapped.activation.name, swapped.gate.name, swapped.value.name) == (name, "beta", "alpha")
    assert (joint.gate.start, joint.value.start) == (0, 24)


def test_factors_are_measured():
    module = Odd(True, False, lambda g, u: ACTIVATIONS["silu"](0.3 * g) * u).double()
    roles = find_formula(module, 16)
    assert (roles.scale_in, roles.scale_out) == (pytest.approx(0.3, abs=1e-12), 1.0)


@pytest.mark.parametrize(
    "arithmetic",
    [
        lambda g, u: ACTIVATIONS["silu"](g.clamp(max=7.0)) * u,
        lambda g, u: ACTIVATIONS["silu"](g) * u.clamp(-100.0, 100.0),
        lambda g, u: ACTIVATIONS["silu"](g) * (u + 1),
        lambda g, u: ACTIVATIONS["silu"](g - g.mean(-1, keepdim=True)) * u,
        lambda g, u: torch.relu(ACTIVATIONS["silu"](g) * u),
        lambda g, u: nn.functional.mish(g) * u,
    ],
)
def test_clamps_shifts_and_sparsity_are_not_taken_for_a_known_kind(arithmetic):
    assert find_formula(Odd(True, False, arithmetic), 16) is None


def test_a_likely_formula_is_not_taken_where_a_projection_reads_something_else():
    class Deeper(Odd):
        def forward(self, stream):
            return self.omega(self.arithmetic(self.alpha(stream), self.beta(stream + stream.roll(1, -1))))

    def arithmetic(g, u):
        return ACTIVATIONS["silu"](g) * u

    likely = find_formula(Odd(True, False, arithmetic), 16)
    assert likely is not None
    assert find_formula(Odd(True, False, arithmetic), 16, [likely]) == likely
    assert find_formula(Deeper(True, False, arithmetic), 16, [likely]) is None


def _bumped(t):
    return ACTIVATIONS["silu"](t) + 0.01 * ((t >= 1.0) & (t <= 1.002))


@pytest.mark.parametrize(
    "arithmetic",
    [
        lambda g, u: _bumped(g) * u,
        lambda g, u: ACTIVATIONS["silu"](g) * u * (1.0 if len(g) == 1 else 1.01),
        lambda g, u: ACTIVATIONS["silu"](g) * u * (1.01 if len(g) == 1 else 1.0),
        lambda g, u: ACTIVATIONS["silu" if g.shape[1] > 1 else "relu"](g) * u,
        lambda g, u: ACTIVATIONS["silu" if len(g) != 2 else "relu"](g) * u,
        lambda g, u: ACTIVATIONS["silu" if g.shape[1] < 9 else "relu"](g) * u,
        lambda g, u: ACTIVATIONS["silu"](g.clamp(max=100.0) if g.shape[1] == 1 else g) * u,
        lambda g, u: ACTIVATIONS["silu"](g.clamp(max=100.0) if g.shape[1] > 8 else g) * u,
    ],
)
def test_bumps_and_what_depends_on_batch_or_length_are_seen(arithmetic):
    assert find_formula(Odd(True, False, arithmetic), 16) is None


@pytest.mark.parametrize(
    "function",
    [
        _bumped,
        lambda t: ACTIVATIONS["silu"](t) * (1.0 if t.shape[-1] < 4000 else 1.01),
        lambda t: ACTIVATIONS["silu" if t.ndim < 3 else "relu"](t),
        lambda t: ACTIVATIONS["silu"](t) if t.numel() > 1 else t,
        lambda t: ACTIVATIONS["silu"](t).clamp(max=2000.0),
    ],
)
def test_an_activation_is_sampled_between_the_points_of_a_grid_and_in_any_shape(function):
    with pytest.raises(ah.AllHeadsError, match="has other values"):
        activation_with_values(function)


def test_an_activation_that_writes_in_place_leaves_the_samples_as_they_are():
    for function in (nn.SiLU(inplace=True), nn.SiLU(), nn.SiLU(inplace=True)):
        assert activation_with_values(function).name == "silu"


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_source_with_a_bump_in_its_activation_is_refused(tiny, kind):
    source = tiny(kind)
    layer = source.blocks[0].original_component
    owner = layer if kind == "opt" else layer.mlp.original_component
    name = "activation_fn" if kind == "opt" else "act_fn"
    known = getattr(owner, name)

    class Bumped(nn.Module):
        def forward(self, t):
            return known(t) + 0.01 * ((t >= 1.0) & (t <= 1.002))

    setattr(owner, name, Bumped())
    with pytest.raises(ah.AllHeadsError, match="L0"):
        ah.convert(source)


def test_what_is_done_to_the_output_is_seen():
    module = Odd(False, False, lambda t, _: torch.relu(t))
    forward = module.forward
    module.forward = lambda x: 1.5 * forward(x)
    assert find_formula(module, 16).scale_out == pytest.approx(1.5)
    module.forward = lambda x: forward(x) + x
    assert find_formula(module, 16) is None


@pytest.mark.parametrize(
    ("kind", "activation", "gated"), [("gpt2", "gelu_tanh", False), ("opt", "relu", False), ("llama", "silu", True)]
)
def test_reading(tiny, kind, activation, gated):
    source = tiny(kind)
    for unit in read_mlps(source, share(source)):
        (mlp,) = unit.mlps
        assert (mlp.activation.name, mlp.gated) == (activation, gated)
        bridge = source.blocks[mlp.location.layer].mlp
        assert torch.equal(mlp.tensors["W_in"], bridge.W_in)
        assert torch.equal(mlp.tensors["W_out"], bridge.W_out)
        assert mlp.tensors["W_in"].data_ptr() == bridge.W_in.data_ptr()


def test_weights_that_are_not_finite_are_refused(tiny):
    source = tiny("gpt2")
    with torch.no_grad():
        source.blocks[1].mlp.W_out[3, 4] = float("nan")
    with pytest.raises(ah.AllHeadsError, match=r"NaN or infinity in c_proj.weight of L1"):
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
