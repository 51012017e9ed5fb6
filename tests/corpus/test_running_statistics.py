"""Sums that add up, whatever the parts and their order."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allheads.corpus.running_statistics import EXAMPLES, SHOWN, RunningStatistics, token_groups

NEURONS, HEADS, PARTS = 4, 3, 6


def _part(number, seed):
    """Statistics with integer activations, so that ties are common and sums exact."""
    draw = torch.Generator().manual_seed(1000 * seed + number)
    part = RunningStatistics.empty([NEURONS], HEADS)
    for name, tensor in part.tensors().items():
        if not name.startswith("example"):
            tensor.copy_(torch.randint(-5, 6, tensor.shape, generator=draw))
    values = torch.randint(-3, 4, (NEURONS, 4), generator=draw).double()
    texts = torch.full((NEURONS, 4), number // 2)
    offsets = 4 * number + torch.arange(4).expand(NEURONS, -1)
    tokens = (1000 * texts + offsets)[..., None].expand(-1, -1, SHOWN).int()
    part.offer(slice(None), (values, texts, offsets), lambda *which: (tokens[which], tokens[which] / 2))
    return part


def _added(parts):
    total = RunningStatistics.empty([NEURONS], HEADS)
    for part in parts:
        total.add(part)
    return total


def _same(one, other):
    return all(torch.equal(tensor, getattr(other, name)) for name, tensor in one.tensors().items())


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(PARTS)), st.integers(0, PARTS), st.integers(0, 50))
def test_any_order_and_any_split(order, cut, seed):
    parts = [_part(number, seed) for number in range(PARTS)]
    whole = _added(parts)
    shuffled = [parts[number] for number in order]
    assert _same(_added(shuffled), whole)
    assert _same(_added([_added(shuffled[:cut]), _added(shuffled[cut:])]), whole)


def test_examples_are_the_largest_and_of_equals_the_first():
    parts = [_part(number, 0) for number in range(PARTS)]
    whole = _added(parts)
    rows = [[], [], [], []]
    for number in range(PARTS):
        draw = torch.Generator().manual_seed(number)
        for name, tensor in RunningStatistics.empty([NEURONS], HEADS).tensors().items():
            if not name.startswith("example"):
                torch.randint(-5, 6, tensor.shape, generator=draw)
        values = torch.randint(-3, 4, (NEURONS, 4), generator=draw)
        for neuron in range(NEURONS):
            rows[neuron] += [(-abs(v), number // 2, 4 * number + i, v) for i, v in enumerate(values[neuron].tolist())]
    for neuron in range(NEURONS):
        best = sorted(rows[neuron])[:EXAMPLES]
        assert whole.example_values[neuron].tolist() == [each[3] for each in best]
        assert whole.example_offsets[neuron].tolist() == [each[2] for each in best]
        assert whole.example_tokens[neuron, :, 0].tolist() == [1000 * each[1] + each[2] for each in best]
        assert whole.example_activations[neuron, :, -1].tolist() == [500 * each[1] + each[2] / 2 for each in best]


def test_extremes_are_those_of_any_part():
    parts = [_part(number, 0) for number in range(PARTS)]
    whole = _added(parts)
    assert torch.equal(whole.lowest, torch.stack([part.lowest for part in parts]).amin(0))
    assert torch.equal(whole.highest, torch.stack([part.highest for part in parts]).amax(0))
    assert torch.equal(whole.histogram, sum(part.histogram for part in parts))


def test_nothing_is_no_example():
    part = RunningStatistics.empty([NEURONS], HEADS)
    *found, tokens, activations = (each[:2, :1] for each in _part(0, 0).examples)
    part.offer(slice(0, 2), tuple(found), lambda *which: (tokens[which], activations[which]))
    assert (part.example_texts[:2, 0] == 0).all()
    assert (part.example_texts[:2, 1:] == -1).all()
    assert (part.example_texts[2:] == -1).all()


def test_frequent_tokens_are_alone():
    counts = torch.arange(1000) % 500
    groups = token_groups(counts)
    alone = torch.bincount(groups, minlength=256)
    assert (alone[:128] == 1).all()
    assert int(alone.sum()) == 1000
    assert int(groups[499]) == 0
    assert int(groups[999]) == 1
    assert (groups[:400] >= 128).all()
