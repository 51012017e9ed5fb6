"""HeadVis' folder: its numbers against patterns, position by position, and its form as the page reads it."""

from __future__ import annotations

import json
from math import log

import numpy as np
import pytest
import torch

import allheads as ah
from allheads.formats import headvis
from allheads.formats.attention_samples import chosen_windows, largest
from allheads.formats.attention_scores import Windows, pattern_metrics, pattern_sums
from allheads.gates.opening import gate_part
from allheads.twin.capture import captured
from allheads_labs import zoo

CONTEXT = 12
SCORES = (
    "self_attention_score",
    "prev_token_score",
    "pattern_entropy",
    "qk_distance",
    "qk_distance_variance",
    "induction_score",
)


@pytest.fixture(scope="module")
def twin(tiny):
    return ah.convert(tiny("llama"))


@pytest.fixture(scope="module")
def texts():
    """Few different tokens, so that they repeat; the last windows are shorter, one of a single token."""
    draw = torch.Generator().manual_seed(4)
    return [torch.randint(12, (length,), generator=draw) for length in (24, 31, 36, 25, 17, 60, 48, 12, 40)]


@pytest.fixture(scope="module")
def windows(texts):
    return [ids for text in texts for ids in text.split(CONTEXT) if len(ids) > 1]


@pytest.fixture(scope="module")
def patterns(twin, windows):
    """``[head query key]`` of all layers, window by window."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    caches = [captured(twin, ids[None], names) for ids in windows]
    return [torch.cat([cache[name][0] for name in names]).double().numpy() for cache in caches]


def _read(folder):
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in names}


@pytest.fixture(scope="module")
def tree(twin, texts, tmp_path_factory):
    return _read(ah.formats.write_headvis(twin, texts, tmp_path_factory.mktemp("headvis") / "new", context=CONTEXT))


def _scores(head, windows, patterns):
    """As they are defined, one attention at a time."""
    sums, counts = dict.fromkeys((*SCORES, "square"), 0.0), dict.fromkeys(SCORES, 0)
    for ids, pattern in zip(windows, patterns, strict=True):
        p, ids = pattern[head], ids.tolist()
        for q in range(len(ids)):
            sums["self_attention_score"] += p[q, q]
            counts["self_attention_score"] += 1
            if q:
                sums["prev_token_score"] += p[q, q - 1]
                counts["prev_token_score"] += 1
            for k in range(q + 1):
                sums["pattern_entropy"] -= p[q, k] * log(p[q, k])
                sums["qk_distance"] += p[q, k] * (q - k)
                sums["square"] += p[q, k] * (q - k) ** 2
            before = [j for j in range(q) if ids[j] == ids[q]]
            counts["induction_score"] += bool(before)
            sums["induction_score"] += sum(p[q, j + 1] for j in before if p[q, j + 1] >= 0.01)
    every = counts["self_attention_score"]
    found = {name: sums[name] / (counts[name] or every) for name in SCORES}
    return found | {"qk_distance_variance": sums["square"] / every - found["qk_distance"] ** 2}


def test_scores_are_those_of_the_patterns(tree, windows, patterns):
    rows = tree["scatter_data.json"]
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, head) for layer in range(3) for head in range(4)]
    for number, row in enumerate(rows):
        expected = _scores(number, windows, patterns)
        assert {name: row[name] for name in SCORES} == pytest.approx(expected, abs=6e-5)
        assert set(row) == {"layer", "head", *SCORES}


def _largest(pattern):
    return float(pattern[1:, 1:].max())


def test_histograms_are_those_of_all_windows(tree, patterns):
    for number in range(12):
        content = tree[f"heads/L{number // 4}H{number % 4}.json"]
        found = [_largest(pattern[number]) for pattern in patterns]
        assert sum(content["histogram"]["bin_values"]) == len(patterns)
        assert content["histogram"]["bin_edges"] == pytest.approx(np.linspace(0, 1, 51))
        expected = np.histogram(found, 50, (0, 1))[0]
        assert np.abs(np.cumsum(content["histogram"]["bin_values"]) - np.cumsum(expected)).max() <= 1  # on an edge
        assert content["statistics"]["mean_max_activation"] == pytest.approx(np.mean(found), abs=6e-5)
        assert content["statistics"]["n_samples"] == len(content["sequences"])


def test_samples_are_windows_with_what_is_attended_to(tree, windows, patterns):
    kept = dropped = 0
    for number in range(12):
        for sample in tree[f"heads/L{number // 4}H{number % 4}.json"]["sequences"]:
            ids, pattern = windows[sample["sequence_id"]], patterns[sample["sequence_id"]][number]
            assert sample["tokens"] == [str(token) for token in ids.tolist()]
            assert sample["seq_len"] == len(ids)
            assert sample["max_activation"] == pytest.approx(_largest(pattern), abs=6e-5)
            shown = np.zeros_like(pattern)
            places = np.array(sample["attention_indices"])
            assert (np.diff(places) > 0).all()
            shown[places // len(ids), places % len(ids)] = sample["attention_values"]
            for q, row in enumerate(pattern):
                strongest = np.sort(row)[::-1][:8]
                assert np.sort(shown[q])[::-1][:8] == pytest.approx(
                    np.where(strongest >= 0.005, strongest, 0), abs=6e-5
                )
                assert shown[q][shown[q] > 0] == pytest.approx(row[shown[q] > 0], abs=6e-5)
                kept, dropped = kept + (shown[q] > 0).sum(), dropped + (row[: q + 1] > 0).sum() - (shown[q] > 0).sum()
    assert kept > dropped > 0


def test_samples_are_from_fifths(tree, patterns):
    for number in range(12):
        values = np.array([_largest(pattern[number]) for pattern in patterns])
        samples = tree[f"heads/L{number // 4}H{number % 4}.json"]["sequences"]
        limits = [np.sort(values)[round(i * len(values) / 5)] for i in range(1, 5)]
        assert [sample["interval"] for sample in samples] == sorted(sample["interval"] for sample in samples)
        for interval in range(1, 6):
            low = limits[interval - 2] if interval > 1 else -1.0
            high = limits[interval - 1] if interval < 5 else 2.0
            inside = [window for window, value in enumerate(values) if low <= value < high]
            found = [sample["sequence_id"] for sample in samples if sample["interval"] == interval]
            assert len(found) == len(set(found)) == min(len(inside), 3 if interval < 5 else 10)
            assert set(found) <= set(inside)
        top = [sample["max_activation"] for sample in samples if sample["interval"] == 5]
        assert top == sorted(top, reverse=True)
        assert top[0] == pytest.approx(values.max(), abs=6e-5)


def test_tokens_and_distances_are_those_of_the_samples(tree):
    for number in range(12):
        content = tree[f"heads/L{number // 4}H{number % 4}.json"]
        queries, keys, distances = {}, {}, np.zeros(13)
        for sample in content["sequences"]:
            for place, value in zip(sample["attention_indices"], sample["attention_values"], strict=True):
                q, k = divmod(place, sample["seq_len"])
                queries[sample["tokens"][q]] = queries.get(sample["tokens"][q], 0) + value
                keys[sample["tokens"][k]] = keys.get(sample["tokens"][k], 0) + value
                distances[0 if q == k else int(np.log2(q - k)) + 1] += value
        for side, sums in (("top_query_tokens", queries), ("top_key_tokens", keys)):
            assert {row["token"]: row["weight"] for row in content[side]} == pytest.approx(sums, abs=6e-5)
            weights = [row["weight"] for row in content[side]]
            assert weights == sorted(weights, reverse=True)
        assert content["qk_distance_histogram"]["bin_edges"][:5] == [0, 1, 2, 4, 8]
        assert content["qk_distance_histogram"]["bin_values"] == pytest.approx(distances, abs=6e-5)


#: What the page, and the scripts that put a tree into a database, ask of the configuration.
_CONFIG = {
    "model_name": str,
    "dataset_name": str,
    "heads": list,
    "n_layers": int,
    "n_heads": int,
    "n_intervals": int,
    "metrics": list,
    "metric_descriptions": dict,
    "head_data_pattern": str,
    "has_umap": bool,
    "custom_plots": list,
    "custom_tables": list,
    "statistics_display": dict,
    "pipeline_config": dict,
}


def _check_tree(tree):
    config = tree["config.json"]
    assert all(type(config[key]) is kind for key, kind in _CONFIG.items())
    assert {"n_sequences", "seq_len", "dtype", "attn_implementation"} <= set(config["pipeline_config"])
    assert config["metrics"] == list(config["metric_descriptions"])
    assert tree["server_config.json"] == tree["attributions/manifest.json"] == {}
    names = {config["head_data_pattern"].format(layer=layer, head=head) for layer, head in config["heads"]}
    assert {name.removeprefix("heads/") for name in tree if name.startswith("heads/")} == names
    assert len(tree) == 4 + len(names)
    for name in names:
        content = tree[f"heads/{name}"]
        for plot in config["custom_plots"]:
            assert len(content[plot["key"]]["bin_edges"]) == len(content[plot["key"]]["bin_values"]) + 1
        for table in config["custom_tables"]:
            assert all(set(row) == {"token", "weight"} for row in content[table["key"]])
        assert set(content["statistics"]) == set(config["statistics_display"])
    for row in tree["scatter_data.json"]:
        assert set(config["metrics"]) == set(row) - {"layer", "head"}


def test_the_form(tree, windows):
    _check_tree(tree)
    assert tree["config.json"]["metrics"] == list(SCORES)
    assert tree["config.json"]["pipeline_config"]["n_sequences"] == len(windows)
    assert (tree["config.json"]["n_layers"], tree["config.json"]["n_heads"]) == (3, 4)


def test_some_heads_are_what_they_are_among_all(twin, texts, tree, tmp_path):
    some = _read(ah.formats.write_headvis(twin, texts, tmp_path / "new", ["L2.A3", "L0.A1", "L2.A0"], context=CONTEXT))
    _check_tree(some)
    assert some["config.json"]["heads"] == [[0, 1], [2, 0], [2, 3]]
    for name in ("heads/L0H1.json", "heads/L2H0.json", "heads/L2H3.json"):
        assert some[name] == tree[name]
    rows = [row for row in tree["scatter_data.json"] if [row["layer"], row["head"]] in some["config.json"]["heads"]]
    assert some["scatter_data.json"] == rows


def test_neurons_have_their_openness_in_the_place_of_attention(twin, texts, windows, tmp_path):
    labels = ["L1.N5", "L1.N40", "L2.N0"]
    folder = _read(ah.formats.write_headvis(twin, texts, tmp_path / "new", labels, context=CONTEXT))
    _check_tree(folder)
    assert folder["config.json"]["heads"] == [[1, 5], [1, 40], [2, 0]]
    assert folder["config.json"]["n_heads"] == 64
    part = gate_part(twin.banks[1].gates)
    opened = []
    for ids in windows:
        names = [f"blocks.{layer}.mlp.hook_pattern_self" for layer in (1, 2)]
        cache = captured(twin, ids[None], names)
        first, second = (cache[name][0].double().numpy() for name in names)
        opened.append(np.stack([first[64 * part + 5], first[64 * part + 40], second[64 * part]]))
    every = np.concatenate(opened, 1)
    entropy = -every * np.log(every) - (1 - every) * np.log(1 - every)
    for row, values, spread in zip(folder["scatter_data.json"], every, entropy, strict=True):
        assert row["self_attention_score"] == pytest.approx(values.mean(), abs=6e-5)
        assert row["openness_std"] == pytest.approx(values.std(), abs=6e-5)
        assert row["pattern_entropy"] == pytest.approx(spread.mean(), abs=1e-4)
    for number, (layer, neuron) in enumerate([(1, 5), (1, 40), (2, 0)]):
        content = folder[f"heads/L{layer}H{neuron}.json"]
        assert content["top_query_tokens"] == content["top_key_tokens"]
        for sample in content["sequences"]:
            values = opened[sample["sequence_id"]][number]
            length = sample["seq_len"]
            shown = np.zeros(length)
            assert all(place % (length + 1) == 0 for place in sample["attention_indices"])
            shown[[place // length for place in sample["attention_indices"]]] = sample["attention_values"]
            assert shown == pytest.approx(np.where(values >= 0.005, values, 0), abs=6e-5)
            assert sample["max_activation"] == pytest.approx(values[1:].max(), abs=6e-5)


def test_windows_are_drawn_alike_again_and_ties_are_of_the_highest_interval():
    values = np.random.default_rng(0).random(200)
    assert chosen_windows(values, "L0.A0") == chosen_windows(values, "L0.A0") != chosen_windows(values, "L0.A1")
    assert chosen_windows(np.ones(30), "L0.A0") == [(5, window) for window in range(10)]
    assert chosen_windows(np.array([0.5]), "L0.A0") == [(5, 0)]


def test_padding_is_not_seen_by_a_network_that_looks_both_ways(tmp_path):
    twin = ah.convert(zoo.build("BertForMaskedLM").bridge)
    ids = torch.randint(1, 96, (12,), generator=torch.Generator().manual_seed(0))
    texts = [ids, ids[:5], ids[:9]]
    together = _read(ah.formats.write_headvis(twin, texts, tmp_path / "together", context=12))
    alone = [_read(ah.formats.write_headvis(twin, [text], tmp_path / f"{len(text)}", context=12)) for text in texts]
    _check_tree(together)
    lengths = np.array([12, 5, 9])
    for row in range(len(together["scatter_data.json"])):
        each = [tree["scatter_data.json"][row]["pattern_entropy"] for tree in alone]
        expected = (np.array(each) * lengths).sum() / lengths.sum()
        assert together["scatter_data.json"][row]["pattern_entropy"] == pytest.approx(expected, abs=2e-4)


def test_bad_input(twin, texts, smollm, tmp_path):
    new = tmp_path / "new"
    refused = {
        "an attention-only twin": lambda: ah.formats.write_headvis(smollm, texts, new),
        "heads, or neurons, got both": lambda: ah.formats.write_headvis(twin, texts, new, ["L0.A1", "L0.N1"]),
        "a head of this twin, up to": lambda: ah.formats.write_headvis(twin, texts, new, ["L3.A1"]),
        "a whole neuron|a head of this twin": lambda: ah.formats.write_headvis(twin, texts, new, ["L0.N64"]),
        "ordinary heads or whole neurons, got L0.N1.0. Name L0.N1": lambda: ah.formats.write_headvis(
            twin, texts, new, ["L0.N1.0"]
        ),
        "a label such as": lambda: ah.formats.write_headvis(twin, texts, new, ["../../A1"]),
        "at least one head or neuron": lambda: ah.formats.write_headvis(twin, texts, new, []),
        "a context of 2 to n_ctx = 64": lambda: ah.formats.write_headvis(twin, texts, new, context=1),
        "texts with a second token": lambda: ah.formats.write_headvis(twin, [torch.tensor([3])], new),
        "ids from 0 to 95": lambda: ah.formats.write_headvis(twin, [torch.tensor([3, 96])], new),
        "the name of a new folder": lambda: ah.formats.write_headvis(twin, texts, tmp_path.parent),
    }
    for message, call in refused.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_two_stacks_are_refused_together(tmp_path):
    twin = ah.convert(zoo.build("T5ForConditionalGeneration").bridge)
    text = [torch.arange(2, 12)]
    with pytest.raises(ah.AllHeadsError, match=r"both L0H0\. Name the labels of one stack"):
        ah.formats.write_headvis(twin, text, tmp_path / "new", context=10)
    encoder = [str(head) for head in twin.index.ordinary() if str(head).startswith("E")]
    _check_tree(_read(ah.formats.write_headvis(twin, text, tmp_path / "new", encoder, context=10)))


def test_nothing_is_left_half_written(twin, texts, tmp_path, monkeypatch):
    written = []

    def failing(path, content):
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        path.write_text("{}")

    monkeypatch.setattr(headvis, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        ah.formats.write_headvis(twin, texts, tmp_path / "new", context=CONTEXT)
    assert list(tmp_path.iterdir()) == []


def test_little_attention_is_no_induction():
    """The third token is the first again: it gives .3, then .009, to the second."""
    ids, real = torch.tensor([[5, 6, 5]]), torch.ones(1, 3, dtype=torch.bool)
    for given, counted in ((0.3, 0.3), (0.009, 0.0)):
        pattern = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.1, given, 0.9 - given]])[None, None]
        rows = Windows.of(ids, real)
        assert float(pattern_metrics(pattern_sums(pattern, rows), rows.counts)["induction_score"]) == pytest.approx(
            counted
        )


def test_padding_is_no_largest_attention():
    pattern = torch.full((2, 1, 4, 4), 0.25)
    pattern[:, :, 2:, 1] = 0.9
    real = torch.tensor([[True, True, False, False], [True] * 4])
    assert largest(pattern, real)[:, 0].tolist() == pytest.approx([0.25, 0.9])
    assert largest(pattern[..., 1], real)[:, 0].tolist() == pytest.approx([0.25, 0.9])


def test_the_gate_is_that_of_the_pictures(tiny, texts, tmp_path):
    """One of six heads of a neuron."""
    twin = ah.convert(tiny("gpt2"))
    folder = _read(ah.formats.write_headvis(twin, texts[:2], tmp_path / "new", ["L1.N3"], context=CONTEXT))
    windows = [ids for text in texts[:2] for ids in text.split(CONTEXT)]
    part, width = gate_part(twin.banks[1].gates), twin.banks[1].d_mlp
    point = "blocks.1.mlp.hook_pattern_self"
    values = [captured(twin, ids[None], [point])[point][0, part * width + 3] for ids in windows]
    (row,) = folder["scatter_data.json"]
    assert row["self_attention_score"] == pytest.approx(float(torch.cat(values).mean()), abs=6e-5)
