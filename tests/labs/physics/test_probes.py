"""Probes: planted answers are found on text that was not seen, shuffled ones are not, and heads keep their names."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import physics
from allheads_labs.kit.text import documentation
from allheads_labs.physics.probing import RIDGE, Sums, Task
from allheads_labs.physics.tags import TAGS, tag, tags

FOLD = torch.arange(600) // 120


def _planted(seeds=3):
    """600 tokens of 4 classes: part 0 carries them, part 1 is noise; a sixth of the tokens are not asked about."""
    draw = torch.Generator().manual_seed(0)
    right = torch.randint(4, (600,), generator=draw)
    features = torch.randn(2, 600, 6, generator=draw)
    features[0, :, :4] += 6 * torch.nn.functional.one_hot(right, 4)
    labels = right.masked_fill(torch.arange(600) % 6 == 0, -1)
    return Task.of("planted", ("a", "b", "c", "d"), labels, seeds), torch.cat([features, torch.ones(2, 600, 1)], -1)


def _run(task, X):
    sums = Sums(task, 5, 2, 6)
    for act in ("add", "test"):
        for fold in range(5):
            for rows in (fold == FOLD).nonzero()[:, 0].split(50):
                getattr(sums, act)(fold, X[:, rows], rows)
        if act == "add":
            sums.solve()
    return sums


def test_planted_answers_are_found_and_shuffled_ones_are_not():
    task, X = _planted()
    accuracy = _run(task, X).accuracy()
    assert accuracy.shape == (5, 2, 4)
    assert accuracy[:, 0, 0].min() > 0.95
    assert accuracy[:, 1, 0].mean() == pytest.approx(0.25, abs=0.08)
    assert accuracy[:, :, 1:].mean() == pytest.approx(0.25, abs=0.08)


def test_probes_are_ridge_regressions_on_the_other_folds():
    task, X = _planted()
    sums = _run(task, X)
    rows = (FOLD != 2) & (task.right >= 0)
    x, y = X[0, rows].double(), torch.nn.functional.one_hot(task.right[rows], 4).double()
    G = x.T @ x
    ridge = RIDGE * float(G.diagonal()[:-1].mean()) * torch.diag(torch.tensor([1.0] * 6 + [1e-9]).double())
    expected = torch.linalg.solve(G + ridge, x.T @ y)
    assert torch.allclose(sums.probes[2, 0, :, :4].double(), expected, atol=1e-4)


def test_shuffles_keep_the_labels_and_what_is_asked():
    task, _ = _planted()
    for row in task.taught[1:]:
        assert torch.equal((row >= 0), (task.right >= 0))
        assert torch.equal(row.sort().values, task.right.sort().values)
        assert not torch.equal(row, task.right)
    assert not torch.equal(task.taught[1], task.taught[2])


def test_the_majority_is_that_of_other_folds():
    labels = torch.tensor([0, 0, 0, 1, 1, 0, -1, 1, 1, 1])
    fold = torch.tensor([0] * 5 + [1] * 5)
    assert Task.of("", ("a", "b"), labels, 1).majority(fold, 2) == pytest.approx([0.4, 0.25])


def test_tags():
    assert tags(["I", " have", " lo", "oked", " at", " __in", "it__", "(", "2", "5", ")"]) == [
        "pronoun", "auxiliary", "-ed", "-ed", "preposition", "other", "other", "punctuation", "number", "number",
        "punctuation",
    ]  # fmt: skip
    assert tags([" quick", "ly", "\n\n", "", "it's"]) == ["-ly", "-ly", "space", "space", "other"]
    assert {tag(word) for text in documentation()[:5] for word in text.split()} == set(TAGS) - {"space"}


@pytest.fixture(scope="module")
def found(worded_twin, texts):
    ids = physics.spread_windows(worded_twin, texts, context=32, count=30)
    return {each.task: each for each in physics.probes(worded_twin, ids, seeds=2, layers=[0, 2])}


def test_what_comes_out(found):
    assert list(found) == ["identity", "token before", "position", "part of speech"]
    for each in found.values():
        assert each.heads.shape == (5, 2, 4)
        assert each.shuffled.shape == (2, 2, 4)
        assert each.stream.shape == (2, 2)
        assert each.layers == (0, 2)
        label, value = each.top(1)[0]
        layer, head = (int(part[1:]) for part in label.split("."))
        assert value == float(each.heads.mean(0).max())
        assert value == pytest.approx(float(each.heads[:, (0, 2).index(layer), head].mean()))


def test_a_token_is_there_to_be_read_and_where_it_stands_is_not(found):
    """A random Llama: what its first layer reads is the token itself, and nothing adds a position to the stream."""
    identity, before = found["identity"], found["token before"]
    assert identity.stream[:, 0].mean() > identity.chance.mean() + 0.1
    assert identity.shuffled.mean() < identity.chance.mean() + 0.05
    assert before.stream[:, 0].mean() < before.chance.mean() + 0.05
    assert found["position"].stream[:, 0].mean() < 0.3
    assert found["position"].chance.mean() == pytest.approx(1 / 8, abs=0.02)
    assert found["part of speech"].table.mean() > found["part of speech"].chance.mean() + 0.1


def test_what_cannot_be_probed(worded_twin, texts, twin_of):
    with pytest.raises(ah.AllHeadsError, match="a twin with a tokenizer"):
        physics.probes(twin_of("LlamaForCausalLM")[0])
    with pytest.raises(ah.AllHeadsError, match=r"5 to \d+ windows, got 4"):
        physics.spread_windows(worded_twin, texts, context=32, count=4)
    ids = physics.spread_windows(worded_twin, texts, context=32, count=5)
    with pytest.raises(ah.AllHeadsError, match="5 windows or more, got 4"):
        physics.probes(worded_twin, ids[:4])
    with pytest.raises(ah.AllHeadsError, match="layers from 0 to 2"):
        physics.probes(worded_twin, ids, layers=[3])
