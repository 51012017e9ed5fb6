"""Statistics of a sweep: against all activations at once, and on neurons set by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import allheads as ah
from allheads.corpus.activation_bins import edges
from allheads.corpus.running_statistics import BEFORE, EXAMPLES, FREQUENT, POSITIONS, SHOWN
from allheads.corpus.variance import explained

DEAD, ALWAYS, BY_TOKEN, BY_POSITION, BY_BOTH = range(5)


@pytest.fixture(scope="module")
def exact(tiny):
    """In float64 but for its softmax, so that what a batch rounds hardly matters."""
    return ah.convert(tiny("gpt2", n_inner=48, dtype=torch.float64))


def _random(count, length, d_vocab, seed=0):
    return list(torch.randint(d_vocab, (count, length), generator=torch.Generator().manual_seed(seed)))


def test_neurons_set_by_hand(by_hand):
    table = (
        ah.corpus.sweep(by_hand, _random(40, 48, 24), ah.corpus.SweepSettings(context=48)).neurons().set_index("label")
    )
    rows = table.loc[[f"L0.N{index}" for index in range(5)]]
    assert rows["state"].tolist()[:2] == ["dead", "always"]
    assert rows["open"].iloc[DEAD] == 0.0
    assert rows["mean"].iloc[DEAD] == 0.0
    assert rows["open"].iloc[ALWAYS] == 1.0
    assert np.isnan(rows["token"].iloc[DEAD])
    assert rows["token"].iloc[BY_TOKEN] == pytest.approx(1.0, abs=1e-6)
    assert abs(rows["position"].iloc[BY_TOKEN]) < 0.02
    assert rows["position"].iloc[BY_POSITION] == pytest.approx(1.0, abs=1e-6)
    assert abs(rows["token"].iloc[BY_POSITION]) < 0.02
    both = rows.iloc[BY_BOTH]
    assert 0.2 < both["token"] < 0.8
    assert both["token"] + both["position"] == pytest.approx(1.0, abs=0.03)


def _everything(twin, texts, context):
    """Every activation and pattern of every window, window by window."""
    rows, patterns = [], []
    for number, text in enumerate(texts):
        for start in range(0, len(text), context):
            ids = text[start : start + context]
            with torch.no_grad():
                cache = twin.run_with_cache(ids[None])[1]
            for position in range(1, len(ids)):
                rows.append((number, start + position, position, int(ids[position])))
            patterns.append((ids, [cache[f"blocks.{layer}.attn.hook_pattern"][0].double() for layer in range(2)]))
            for kind in ("pre", "post"):
                values = torch.cat([cache[f"blocks.{layer}.mlp.hook_{kind}"][0, 1:] for layer in range(2)], 1)
                rows[-1] += (values.double().numpy(),)
    table = pd.DataFrame([row[:4] for row in rows], columns=["text", "offset", "position", "token"])
    pre, post = (np.concatenate([row[which] for row in rows if len(row) > 4]) for which in (4, 5))
    return table, pre, post, patterns


def test_all_activations_at_once(exact):
    texts = [*_random(6, 21, 96), *_random(3, 12, 96, seed=1), *_random(1, 14, 96, seed=2)]
    found = ah.corpus.sweep(exact, texts, ah.corpus.SweepSettings(context=8, batch=3, every=2))
    table, pre, post, patterns = _everything(exact, texts, 8)
    neurons = found.neurons()
    assert found.statistics.positions == len(table)
    assert list(neurons["label"]) == [f"L{layer}.N{n}" for layer in range(2) for n in range(48)]
    assert np.allclose(neurons["open"], (pre > 0).mean(0))
    assert np.allclose(neurons["mean"], post.mean(0), atol=1e-6)
    assert np.allclose(neurons["std"], post.std(0, ddof=1), atol=1e-6)
    best = np.abs(post).argmax(0)
    assert np.allclose(neurons["largest"], post[best, range(96)], atol=1e-6)
    places = {place: row for row, place in enumerate(zip(table["text"], table["offset"], strict=True))}
    there = [places[place] for place in zip(neurons["text"], neurons["offset"], strict=True)]
    assert np.allclose(neurons["largest"], post[there, range(96)], atol=1e-6)
    lively = post.std(0) > 0.1
    assert lively.sum() > 40
    for column in ("token", "position"):
        assert np.allclose(neurons[column][lively], _share(table[column], post)[lively], atol=1e-6)
    _same_heads(found, patterns)


def _share(labels, values):
    """By the textbook, group by group."""
    within = sum(((rows - rows.mean(0)) ** 2).sum(0) for rows in (values[labels == each] for each in set(labels)))
    n, groups = len(values), len(set(labels))
    return 1 - within / (n - groups) / (((values - values.mean(0)) ** 2).sum(0) / (n - 1))


def _same_heads(found, patterns):
    sums = {name: torch.zeros(8, dtype=torch.float64) for name in found.heads().columns[1:]}
    counts = dict.fromkeys(sums, 0)
    for ids, layers in patterns:
        pattern = torch.cat(layers)
        for q in range(1, len(ids)):
            row = pattern[:, q]
            sources = {
                "previous": [q - 1],
                "self": [q],
                "first": [0],
                "duplicate": [k for k in range(q) if ids[k] == ids[q]],
                "induction": [k for k in range(1, q + 1) if ids[k - 1] == ids[q]],
            }
            for name, chosen in sources.items():
                sums[name] += row[:, chosen].sum(1)
                counts[name] += bool(chosen)
            sums["entropy"] -= torch.xlogy(row, row).sum(1)
            counts["entropy"] += 1
    heads = found.heads()
    assert list(heads["label"]) == [f"L{layer}.A{head}" for layer in range(2) for head in range(4)]
    for name in sums:
        assert counts[name] > 0
        assert np.allclose(heads[name], sums[name] / counts[name], atol=1e-6)


def test_examples(exact):
    texts = _random(2, 40, 96)
    found = ah.corpus.sweep(exact, texts, ah.corpus.SweepSettings(context=8, batch=4))
    _, _, post, _ = _everything(exact, texts, 8)
    # Seven counted positions in each of ten windows; one example of each.
    windows = np.abs(post[:, 50]).reshape(10, 7)
    facts = found.of("L1.N2")
    assert [abs(each.value) for each in facts["examples"]] == pytest.approx(
        sorted(windows.max(1))[::-1][:EXAMPLES], abs=1e-6
    )
    for each in facts["examples"]:
        window = each.offset // 8 * 8
        assert each.tokens == texts[each.text][window : window + 8].tolist()
        assert each.offset == window + each.at
        there = windows[5 * each.text + window // 8]
        assert np.abs(each.activations) == pytest.approx([0.0, *there], abs=1e-6)
        assert each.activations[each.at] == pytest.approx(each.value, abs=1e-6)
    assert facts["largest"] == facts["examples"][0].value
    assert set(found.of("L1.A3")) == {"label", "previous", "self", "first", "duplicate", "induction", "entropy"}
    with pytest.raises(ah.AllHeadsError, match=r"a whole neuron, up to L1.N47, got L1.N48"):
        found.of("L1.N48")
    with pytest.raises(ah.AllHeadsError, match="a whole neuron"):
        found.of("L1.N4.0")


def test_long_windows_are_shown_around_the_largest(exact):
    texts = _random(2, 120, 96)
    found = ah.corpus.sweep(exact, texts, ah.corpus.SweepSettings(context=60, batch=3))
    for neuron in range(96):
        for each in found.examples(neuron):
            start, end = each.offset // 60 * 60, (each.offset // 60 + 1) * 60
            first, last = max(start, each.offset - BEFORE), min(end, each.offset + SHOWN - BEFORE)
            assert each.tokens == texts[each.text][first:last].tolist()
            assert each.at == each.offset - first
            assert len(each.activations) == len(each.tokens)


def test_extremes_and_histogram(exact):
    texts = [*_random(4, 30, 96), *_random(2, 11, 96, seed=1)]
    statistics = ah.corpus.sweep(exact, texts, ah.corpus.SweepSettings(context=8, batch=3)).statistics
    _, _, post, _ = _everything(exact, texts, 8)
    assert np.allclose(statistics.lowest, post.min(0), atol=1e-6)
    assert np.allclose(statistics.highest, post.max(0), atol=1e-6)
    assert (statistics.histogram.sum(1) == len(post)).all()
    bins = edges(-np.inf, np.inf)
    for neuron in range(96):
        counts = statistics.histogram[neuron].numpy()
        # Within rounding of an edge, a value may be on either side.
        inside = np.histogram(post[:, neuron], bins)[0]
        assert np.abs(counts - inside).sum() <= 2 * (np.abs(post[:, neuron, None] - bins[1:-1]) < 1e-6).sum()


def test_noise_is_explained_by_nothing():
    draw = torch.Generator().manual_seed(0)
    values, groups = torch.randn(600, 50, generator=draw).double(), torch.randint(100, (600,), generator=draw)
    counts = torch.bincount(groups, minlength=120)
    sums = torch.zeros(120, 50).double().index_add_(0, groups, values)
    found = explained(counts, sums, values.square().sum(0))
    assert abs(float(found.mean())) < 0.02
    between = ((sums[:100] / counts[:100, None] - values.mean(0)).square() * counts[:100, None]).sum(0)
    assert float((between / (values - values.mean(0)).square().sum(0)).mean()) > 0.12
    assert explained(counts[:100].clamp(max=1), sums[:100], values.square().sum(0)).isnan().all()


def test_coarser_groups_explain_less():
    """Beyond the most frequent tokens several share a group: what is reported is then a lower bound."""
    draw = torch.Generator().manual_seed(0)
    token = (torch.rand(20_000, generator=draw) * 1000).long()
    value = torch.randn(1000, generator=draw).double()[token][:, None]
    shares = []
    for groups in (token, token % 200, token % 20):
        sums = torch.zeros(1000, 1).double().index_add_(0, groups, value)
        shares.append(float(explained(torch.bincount(groups, minlength=1000), sums, value.square().sum(0))))
    assert shares[0] == pytest.approx(1.0)
    assert shares[0] > shares[1] > shares[2] > 0


def test_long_windows_share_position_groups(tiny):
    twin = ah.convert(tiny("gpt2", n_positions=256))
    found = ah.corpus.sweep(twin, _random(1, 600, 96), ah.corpus.SweepSettings(context=250, batch=2))
    counts = found.statistics.position_counts
    assert int(counts.sum()) == found.statistics.positions == 597
    assert (counts > 0).all()
    assert int(counts[0]) == 3
    assert len(counts) == POSITIONS
    assert len(found.statistics.token_counts) == 2 * FREQUENT


def test_windows_begin_as_the_tokenizer_begins(opened):
    found = ah.corpus.sweep(opened, ["word1 word2 word3 word4 word5"], ah.corpus.SweepSettings(context=4))
    assert found.settings["windows"] == 2
    assert found.statistics.positions == 5
    example = max(found.of("L0.N0")["examples"], key=lambda each: each.offset)
    assert example.offset in (3, 4)
    assert example.tokens == [0, 6, 7]
    assert example.at == example.offset - 2
    assert example.activations[0] == 0.0
