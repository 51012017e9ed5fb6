"""What hooks see is what the output is made of, and what they set arrives there."""

from __future__ import annotations

import pytest
import torch

from allheads.heads.hooks import HeadHooks


def _record(made, x):
    seen = {}
    for name, point in made.hooks.named_children():
        point.add_hook(lambda tensor, hook, name=name: seen.__setitem__(name, tensor.detach().clone()))
    with torch.no_grad():
        out = made(x)
    for point in made.hooks.children():
        point.remove_hooks()
    return out, seen


@pytest.mark.parametrize("gated", [False, True])
def test_shapes_and_identities(bank, stream, gated):
    made, x = bank("gelu", gated), stream()
    out, seen = _record(made, x)
    batch, pos, neurons, parts = 2, 9, made.d_mlp, made.gates.heads
    heads, width = parts * neurons, 1 + max(made.gates.bias_tokens)
    assert seen["hook_pre"].shape == seen["hook_post"].shape == (batch, pos, neurons)
    assert seen["hook_q"].shape == seen["hook_v"].shape == seen["hook_z"].shape == (batch, pos, heads, 1)
    assert seen["hook_attn_scores"].shape == seen["hook_pattern"].shape == (batch, heads, pos, width)
    assert seen["hook_pattern_self"].shape == (batch, heads, pos)
    assert seen["hook_result"].shape == (batch, pos, heads, x.shape[-1])
    assert ("hook_pre_linear" in seen) == gated
    assert torch.allclose(seen["hook_pattern"].sum(-1), torch.ones(batch, heads, pos).double())
    assert torch.equal(seen["hook_pattern"][..., 0], seen["hook_pattern_self"])
    assert torch.allclose(seen["hook_z"][..., 0], seen["hook_pattern_self"].mT * seen["hook_v"][..., 0])
    assert torch.allclose(seen["hook_result"].sum(2) + made.b_out, out)
    by_neuron = seen["hook_z"][..., 0].unflatten(2, (parts, neurons)).sum(2)
    assert torch.allclose(by_neuron, seen["hook_post"])
    assert torch.allclose(seen["hook_post"] @ made.W_out + made.b_out, out)


@pytest.mark.parametrize("evaluation", ["closed", "slots", "attention"])
@pytest.mark.parametrize("point", HeadHooks.PER_HEAD)
def test_closing_every_head_leaves_the_bias(bank, stream, evaluation, point):
    """A hook that empties any per-head activation silences the neurons, whatever the evaluation."""
    if point in ("hook_q", "hook_attn_scores"):
        pytest.skip("zero scores are an open gate, see the next test")
    made, x = bank("silu", True, evaluation=evaluation), stream()
    getattr(made.hooks, point).add_hook(lambda tensor, hook: torch.zeros_like(tensor))
    assert torch.allclose(made(x), made.b_out.expand_as(x), atol=1e-12)


@pytest.mark.parametrize("evaluation", ["closed", "slots", "attention"])
@pytest.mark.parametrize("point", ["hook_q", "hook_attn_scores", "hook_pre", "hook_pre_linear", "hook_post"])
def test_every_edit_arrives(bank, stream, evaluation, point):
    made, x = bank("silu", True, evaluation=evaluation), stream()
    before = made(x)
    getattr(made.hooks, point).add_hook(lambda tensor, hook: 0.5 * tensor)
    assert (made(x) - before).abs().max() > 1e-3


def test_one_edit_moves_one_neuron(bank, stream):
    made, x = bank("gelu_tanh", False), stream()
    before = made(x)

    def close(pattern, hook):
        pattern = pattern.clone()
        pattern[:, [5 + part * made.d_mlp for part in range(made.gates.heads)]] = 0.0
        return pattern

    made.hooks.hook_pattern_self.add_hook(close)
    t = (x @ made.W_in + made.b_in)[..., 5]
    expected = before - made.gates(t)[..., None] * made.W_out[5]
    assert torch.allclose(made(x), expected, atol=1e-9)


def test_results_and_activations_can_both_be_edited(bank, stream):
    made, x = bank("silu", False), stream()
    before = made(x)
    made.hooks.hook_post.add_hook(lambda tensor, hook: 2 * tensor)
    made.hooks.hook_result.add_hook(lambda tensor, hook: tensor + 1.0)
    expected = 2 * (before - made.b_out) + made.b_out + made.d_mlp
    assert torch.allclose(made(x), expected)
