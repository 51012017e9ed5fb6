"""Weights are views of the source's tensors until somebody edits them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import allheads as ah
from allheads.heads.bank import HeadBank

NAMES = ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O", "b_O", "bias_keys", "bias_offsets")


def test_orientations(bank):
    made = bank("silu", True)
    heads, tokens, d_model = 2 * made.d_mlp, max(made.gates.bias_tokens), 12
    shapes = {name: tuple(getattr(made, name).shape) for name in NAMES}
    assert shapes["W_Q"] == shapes["W_K"] == shapes["W_V"] == (heads, d_model, 1)
    assert shapes["b_Q"] == shapes["b_K"] == shapes["b_V"] == (heads, 1)
    assert shapes["W_O"] == (heads, 1, d_model)
    assert shapes["b_O"] == (d_model,)
    assert shapes["bias_keys"] == (heads, tokens, 1)
    assert shapes["bias_offsets"] == (heads, tokens)


def test_weights_are_views_of_the_source():
    W_in, W_out = torch.randn(4, 6, generator=torch.manual_seed(0)), torch.randn(6, 4)
    made = HeadBank({"W_in": W_in, "W_out": W_out}, ah.gates.approximate("silu"))
    assert made.W_Q.data_ptr() == W_in.data_ptr()
    assert made.W_O.data_ptr() == W_out.data_ptr()
    made.double()
    assert W_in.dtype == torch.float32


def test_the_weights_are_the_heads(kind, bank, stream):
    """One head computed by hand from the weights shown is what the bank writes for it."""
    made, x = bank(*kind), stream()
    seen = []
    made.hooks.hook_result.add_hook(lambda result, hook: seen.append(result))
    made(x)
    head = made.d_mlp * (made.gates.heads - 1) + 3
    q, v = x @ made.W_Q[head] + made.b_Q[head], x @ made.W_V[head] + made.b_V[head]
    scores = torch.cat([torch.zeros_like(q), q * made.bias_keys[head, :, 0] + made.bias_offsets[head]], -1)
    expected = scores.softmax(-1)[..., :1] * v @ made.W_O[head]
    assert torch.allclose(seen[0][:, :, head], expected, rtol=1e-9, atol=1e-9)


def test_shared_weights_refuse_writes(bank):
    made = bank("silu", True)
    before = made.W_in.clone()
    for write in (
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w[0].mul_(2.0),
        lambda w: w.data.zero_(),
        lambda w: torch.add(w, 1.0, out=w),
        lambda w: w.unbind(0)[0].fill_(3.0),
        lambda w: torch.nn.functional.relu(w, inplace=True),
        lambda w: torch._foreach_add_([w], 1.0),
    ):
        with pytest.raises(ah.AllHeadsError, match=r"with bank\.edit\(\)"):
            write(made.W_Q)
    with pytest.raises(ah.AllHeadsError, match="an assignment to W_Q"):
        made.W_Q = torch.zeros(3)
    made.W_Q.numpy()[:] = 9.0
    assert torch.equal(made.W_in, before)
    assert int(torch.floor(made.W_Q[0, 0, 0])) == int(torch.floor(made.W_gate[0, 0]))
    assert type(made.W_Q + 1) is torch.Tensor


@pytest.mark.parametrize("evaluation", ["closed", "slots", "attention"])
@pytest.mark.parametrize("name", NAMES)
def test_an_edit_copies_first_and_counts(bank, stream, name, evaluation):
    source = bank("silu", True)
    W_in, W_gate, W_out = (t.detach() for t in (source.W_in, source.W_gate, source.W_out))
    made = HeadBank({"W_in": W_in, "W_out": W_out, "W_gate": W_gate}, source.gates)
    x, kept = stream(), [t.clone() for t in (W_in, W_gate, W_out)]
    made.evaluation = "slots"
    before = made(x)
    with made.edit() as heads:
        pass
    made.evaluation = evaluation
    assert torch.allclose(made(x), before, atol=1e-12)
    with made.edit() as heads:
        getattr(heads, name)[3] += 0.5
    assert (made(x) - before).abs().max() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip((W_in, W_gate, W_out), kept, strict=True))


def test_edited_heads_evaluate_alike(kind, bank, stream):
    made, x = bank(*kind), stream()
    with made.edit() as heads:
        heads.W_K[1] += 0.05
        heads.W_V[2] *= 1.5
        heads.bias_offsets[0] += 0.1
    made.evaluation = "attention"
    literal = made(x)
    made.evaluation = "slots"
    assert torch.allclose(made(x), literal, rtol=1e-9, atol=1e-8)


def test_casting_keeps_the_gates_coefficients(bank):
    made = bank("silu", True)
    with made.edit() as heads:
        exact = heads.bias_offsets.clone()
    made.to(torch.bfloat16)
    assert made.edited.W_Q.dtype == torch.bfloat16
    assert torch.equal(made.edited.bias_offsets, exact)


def test_masking_one_bias_token_leaves_the_others():
    made = HeadBank({"W_in": torch.eye(1), "W_out": torch.eye(1)}, ah.gates.approximate("silu"), "slots")
    doubled = replace(made.gates, gates=(ah.gates.Gate((0.0, 0.0), (1.0, 1.0)),))
    made.gates = doubled
    with made.edit() as heads:
        heads.bias_offsets[:, 0] = -torch.inf
    x = torch.ones(1, 1, 1)
    assert torch.allclose(made(x), torch.nn.functional.silu(x))


def test_one_head_is_the_same_alone(kind, bank):
    made = bank(*kind)
    number = made.d_mlp * (made.gates.heads - 1) + 4
    alone = made.head(number)
    for name in NAMES:
        whole = getattr(made, name)
        assert torch.allclose(alone[name], whole if name == "b_O" else whole[number]), name


def test_gates_of_the_other_kind_are_refused(bank):
    with pytest.raises(ah.AllHeadsError, match="gates for a plain neuron, got gates for a gated neuron"):
        bank("silu", False).gates = ah.gates.approximate("silu", gated=True)
    with pytest.raises(ah.AllHeadsError, match=r"\[batch pos d_model\]"):
        bank("silu", False)(torch.zeros(3, 12))


def test_a_frozen_bank_is_not_edited(bank, stream):
    made = bank("silu", False)
    made.freeze()
    with pytest.raises(ah.AllHeadsError, match="frozen gates"), made.edit():
        pass
    x = stream()
    assert torch.allclose(made(x, torch.full(x.shape[:2], 0.5)), 0.5 * made(x))
    made.unfreeze()
    made.require_shared("neurons", "L0")
    with made.edit():
        pass
    with pytest.raises(ah.AllHeadsError, match=r"Expected neurons, got edited heads in L0. Do it before the edit."):
        made.require_shared("neurons", "L0")
    made.freeze()
    assert torch.allclose(made(x, torch.full(x.shape[:2], 0.5)), 0.5 * made(x))
