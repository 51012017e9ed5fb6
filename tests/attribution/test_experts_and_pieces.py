"""Interventions on experts, which read all prompts end to end, and on heads that are shown in other pieces."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import zoo


def _same(one, other):
    """Rounding, in float64."""
    return bool((one - other).abs().max() <= 1e-12 * other.abs().max())


def _logits(twin, ids):
    with torch.no_grad():
        return twin(ids)


def _two(sample):
    """Two prompts side by side."""
    ids = sample.inputs["input"]
    return torch.cat([ids, ids.flip(1)])


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Llama4ForCausalLM"])
def test_a_neuron_of_an_expert_without_its_weights(name):
    """By hand: the column that it writes through is zero in a copy of the source."""
    sample, copy = (zoo.build(name, dtype=torch.float64) for _ in range(2))
    twin, ids = ah.convert(sample.bridge), _two(sample)
    # Stacks of experts: the second axis is what Mixtral writes into, and Llama 4's neurons.
    down = next(p for path, p in copy.bridge.original_model.named_parameters() if path.endswith("experts.down_proj"))
    label = next(str(head.label.neuron) for head in twin.heads() if str(head.label.neuron).endswith(".M1.N5"))
    with torch.no_grad():
        down[1].select(0 if name.startswith("Llama4") else 1, 5).zero_()
        by_hand = copy.bridge(ids)
    with ah.ablate(twin, [label]):
        without = _logits(twin, ids)
    assert _same(without, by_hand)
    assert not _same(without, _logits(twin, ids))


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Gemma4ForCausalLM"])
def test_positions_count_within_each_prompt(name):
    """Experts read the rows of all prompts end to end."""
    sample = zoo.build(name, dtype=torch.float64)
    twin, ids = ah.convert(sample.bridge), _two(sample)
    values = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    used = next(label for label in (f"L0.M{expert}.N5" for expert in range(4)) if _moves(twin, ids, label))
    alone = ids[1:]
    changes = [
        lambda row: ah.ablate(twin, [used], positions=[3, -1]),
        lambda row: ah.patch(twin, {used: values if row is None else values[row]}, positions=[3, -1]),
        lambda row: ah.pin(twin, {used: values if row is None else values[row]}, positions=[3, -1]),
        lambda row: ah.ablate(twin, [used], positions=[3, -1], resample=ids.flip(0) if row is None else ids[:1]),
    ]
    for change in changes:
        with change(None):
            together = _logits(twin, ids)[1:]
        with change(1):
            assert _same(together, _logits(twin, alone))
        assert not _same(together, _logits(twin, alone))
    average = ah.corpus.means(twin, [ids])
    assert average.count == 2 * (ids.shape[1] - 1)
    one_by_one = ah.corpus.means(twin, [ids[:1], alone])
    assert all(torch.allclose(value, average.of(point), atol=1e-12) for point, value in one_by_one.values.items())


def _moves(twin, ids, label):
    own = _logits(twin, ids[1:])
    with ah.ablate(twin, [label], positions=[3]):
        return not _same(_logits(twin, ids[1:]), own)


@pytest.mark.parametrize("name", ["YoutuForCausalLM", "DeepseekV3ForCausalLM"])
def test_heads_that_are_shown_in_other_pieces(name):
    """By hand: the columns that a head writes through are zero in a copy of the source."""
    sample, copy = (zoo.build(name, dtype=torch.float64) for _ in range(2))
    twin, ids = ah.convert(sample.bridge), _two(sample)
    with torch.no_grad():
        out = copy.bridge.original_model.model.layers[0].self_attn.o_proj.weight
        width = out.shape[1] // 4
        out[:, width : 2 * width] = 0.0
        by_hand = copy.bridge(ids)
    with ah.ablate(twin, ["L0.A1"]):
        assert _same(_logits(twin, ids), by_hand)
    average = ah.corpus.means(twin, [ids])
    assert average.of("blocks.0.attn.hook_z").shape == (4, width)
    with ah.ablate(twin, ["L0.A1"], means=average):
        assert not _same(_logits(twin, ids), by_hand)
