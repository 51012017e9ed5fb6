"""Neurons whose heads were edited are read as they are: a neuron is the sum of its heads."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.attribution.rules import RULES
from allheads_labs import zoo

IDS = torch.tensor([5, 9, 30, 22, 41, 7])
FAMILIES = ["LlamaForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM", "T5ForConditionalGeneration"]


def _twin(name):
    twin = ah.convert(zoo.build(name, dtype=torch.float64).bridge)
    for bank in twin.banks:
        bank.evaluation = "slots"
    return twin


def _inputs(name):
    return {"input": IDS[None], "decoder_input": IDS[None]} if name.startswith("T5") else IDS


def _edited(name):
    """A twin in whose first bank heads of one neuron no longer agree, and attend to themselves by a key."""
    twin = _twin(name)
    with twin.banks[0].edit() as heads:
        random = torch.Generator().manual_seed(0)
        for tensor in (heads.W_Q, heads.W_K, heads.W_V, heads.W_O, heads.b_Q, heads.b_V):
            rows = tensor[: len(tensor) // 2]
            rows += 0.5 * torch.randn(rows.shape, generator=random, dtype=torch.float64).to(rows)
    return twin


@pytest.mark.parametrize("name, rule", [*((FAMILIES[0], rule) for rule in RULES), *((n, "half") for n in FAMILIES[1:])])
def test_a_copy_that_nobody_changed_is_read_like_the_original(name, rule):
    twin = _twin(name)
    before = ah.attribute(twin, _inputs(name), 11, rule=rule)
    for bank in twin.banks:
        bank.copy_heads()
    after = ah.attribute(twin, _inputs(name), 11, rule=rule)
    assert after.target_value == pytest.approx(before.target_value, abs=1e-9)
    for kind in ("effects", "direct", "begins"):
        for sublayer, table in getattr(before, kind).items():
            # Credit to a gate goes along a chord from 0, and there the approximation is not 0 but within 5e-7.
            torch.testing.assert_close(getattr(after, kind)[sublayer], table, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "name, rule", [*((FAMILIES[0], rule) for rule in ("value", "gate")), *((n, "half") for n in FAMILIES)]
)
def test_parts_sum_to_the_target_and_do_what_they_say(name, rule):
    """In the frozen twin, what a neuron's heads write is taken away together."""
    twin = _edited(name)
    found = ah.attribute(twin, _inputs(name), 11, rule=rule)
    assert found.completeness_error < 1e-12
    stem = twin.layers[0].location.stem
    confirmed = found.graph(budget=40).confirm()
    assert any(part.startswith(f"{stem}.N") for part in confirmed.names)
    assert confirmed.frozen_error < 1e-9
    label, position = f"{stem}.N3", 2
    effect = found.of(label)[position].effect
    frozen = ah.frozen(twin, _inputs(name), rule=rule)
    with torch.no_grad(), frozen, ah.ablate(twin, [label], positions=[position]):
        after = found.question.run()[0, -1, 11]
    assert found.target_value - float(after) == pytest.approx(effect, abs=1e-10)


def test_the_gradient_is_that_of_the_network():
    twin = _edited("LlamaForCausalLM")
    found, written = ah.attribute(twin, IDS, 11, rule="gradient"), {}

    def keep(value, hook):
        written["z"] = value.detach().requires_grad_()
        return written["z"]

    with twin.hooks(fwd_hooks=[("blocks.0.mlp.hook_z", keep)]):
        gradient = torch.autograd.grad(twin(IDS[None])[0, -1, 11], [written["z"]])[0]
    by_head = (gradient * written["z"])[0, ..., 0].detach()
    expected = by_head.unflatten(-1, (-1, twin.banks[0].d_mlp)).sum(1)
    torch.testing.assert_close(found.effects["L0.N"], expected, atol=1e-12, rtol=1e-9)
    assert expected.abs().max() > 1e-3


def test_patterns_are_frozen():
    twin = _edited("LlamaForCausalLM")
    with (
        ah.frozen(twin, IDS),
        twin.hooks(fwd_hooks=[("blocks.0.mlp.hook_pattern_self", lambda value, hook: value)]),
        pytest.raises(ah.AllHeadsError, match=r"one on their patterns, which are frozen. Use hook_z"),
    ):
        twin(IDS[None])


def test_they_have_no_preactivation_in_common():
    with pytest.raises(ah.AllHeadsError, match=r"share its preactivation, got edited heads in L0\. Ask before"):
        ah.attribute_pattern(_edited("LlamaForCausalLM"), IDS, "L0.N3")
