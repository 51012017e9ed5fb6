"""Feature files: their form as pages ask for it, and what they say against activations and weights."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import allheads as ah
from allheads.attribution.neuronpedia.numbering import cantor
from allheads.formats import features
from allheads.twin.capture import captured
from allheads.twin.labels import Label
from allheads_labs import zoo

CONTEXT = 16


@pytest.fixture(scope="module")
def twin(tiny):
    return ah.convert(tiny("llama"))


@pytest.fixture(scope="module")
def texts():
    return list(torch.randint(96, (8, 40), generator=torch.Generator().manual_seed(2)))


@pytest.fixture(scope="module")
def sweep(twin, texts):
    return ah.corpus.sweep(twin, texts, ah.corpus.SweepSettings(context=CONTEXT, batch=3))


@pytest.fixture(scope="module")
def written(twin, sweep, tmp_path_factory):
    folder = ah.formats.write_features(twin, sweep, tmp_path_factory.mktemp("features") / "all")
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def activations(twin, texts):
    """``[window pos neuron]`` of each layer, window by window; texts are two and a half windows long."""
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(3)]
    windows = [ids[None] for text in texts for ids in text.split(CONTEXT)]
    caches = [captured(twin, ids, names) for ids in windows]
    return [torch.cat([cache[name][0] for name in names], 1) for cache in caches]


#: Types by key: what pages cannot do without, and what circuit-tracer's reader asks for besides.
_FEATURE = {
    "transcoder_id": str,
    "index": int,
    "examples_quantiles": list,
    "top_logits": list,
    "bottom_logits": list,
    "act_min": float,
    "act_max": float,
    "quantile_values": list,
    "histogram": list,
    "activation_frequency": float,
}
_EXAMPLE = {"tokens": list, "tokens_acts_list": list, "train_token_ind": int, "is_repeated_datapoint": bool}


def _all(values, kind):
    return all(type(value) is kind for value in values)


def check_feature(content):
    """Raise if a page, or a reader, would stumble."""
    assert all(type(content[key]) is kind for key, kind in _FEATURE.items())
    assert _all(content["top_logits"] + content["bottom_logits"], str)
    assert _all(content["quantile_values"] + content["histogram"], float)
    assert content["examples_quantiles"]  # pages look at the first
    for group in content["examples_quantiles"]:
        assert set(group) == {"quantile_name", "examples"} and type(group["quantile_name"]) is str
        for example in group["examples"]:
            assert set(example) == set(_EXAMPLE)
            assert all(type(example[key]) is kind for key, kind in _EXAMPLE.items())
            assert len(example["tokens"]) == len(example["tokens_acts_list"]) > example["train_token_ind"] >= 0
            assert _all(example["tokens"], str) and _all(example["tokens_acts_list"], float)


def test_every_file_has_the_form_and_the_name_of_its_neuron(written):
    assert len(written) == 3 * 64
    for name, content in written.items():
        check_feature(content)
        label = Label.parse(content["label"])
        assert content["index"] == cantor(label.layer, label.index) == int(name.removesuffix(".json"))
        assert content["layer"] == label.layer


def test_numbers_are_those_of_the_activations(written, activations):
    counted = torch.cat([window[1:] for window in activations])
    for layer, neuron in ((0, 0), (1, 33), (2, 63)):
        values = counted[:, 64 * layer + neuron].double().numpy()
        content = written[f"{cantor(layer, neuron)}.json"]
        assert content["act_min"] == pytest.approx(values.min(), rel=1e-4)
        assert content["act_max"] == pytest.approx(values.max(), rel=1e-4)
        assert sum(content["histogram"]) == pytest.approx(len(values), abs=0.3)
        assert content["quantile_values"][0] == content["act_min"]
        assert content["quantile_values"][-1] == content["act_max"]
        assert len(content["quantile_values"]) == 101
        middle = content["quantile_values"][50]
        assert 0.4 < (values <= middle).mean() < 0.6


def test_examples_are_the_largest_with_all_their_activations(written, texts, activations):
    windows = [ids for text in texts for ids in text.split(CONTEXT)]
    for layer, neuron in ((0, 7), (2, 20)):
        column = 64 * layer + neuron
        content = written[f"{cantor(layer, neuron)}.json"]
        examples = [each for group in content["examples_quantiles"] for each in group["examples"]]
        peaks = [each["tokens_acts_list"][each["train_token_ind"]] for each in examples]
        largest = sorted((float(window[1:, column].abs().max()) for window in activations), reverse=True)[:5]
        assert sorted(map(abs, peaks), reverse=True) == pytest.approx(largest, rel=1e-4)
        assert abs(peaks[0]) == pytest.approx(largest[0], rel=1e-4)
        for each, peak in zip(examples, peaks, strict=True):
            at = next(
                number
                for number, window in enumerate(activations)
                if abs(float(window[1:, column].abs().max()) - abs(peak)) <= 1e-4 * abs(peak)
            )
            start = int(activations[at][1:, column].abs().argmax()) + 1 - each["train_token_ind"]
            stop = start + len(each["tokens"])
            assert each["tokens"] == [str(token) for token in windows[at][start:stop].tolist()]
            expected = activations[at][start:stop, column].clone()
            if start == 0:
                expected[0] = 0.0
            assert each["tokens_acts_list"] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


def test_examples_of_either_sign_are_apart(written):
    names = set()
    for content in written.values():
        for group in content["examples_quantiles"]:
            names.add(group["quantile_name"])
            for each in group["examples"]:
                peak = each["tokens_acts_list"][each["train_token_ind"]]
                assert (peak >= 0) == (group["quantile_name"] == "Top activations")
    assert names == {"Top activations", "Most negative activations"}


def test_logits_are_those_of_the_weights(twin, written):
    model = twin.original_model
    gain = model.model.norm.weight.detach().double().numpy()
    W_U = model.lm_head.weight.detach().double().numpy()
    for layer, neuron in ((0, 3), (2, 40)):
        w_out = twin.banks[layer].W_out[neuron].detach().double().numpy()
        order = np.argsort(W_U @ (gain * w_out))
        content = written[f"{cantor(layer, neuron)}.json"]
        assert content["top_logits"] == [str(token) for token in order[::-1][:10]]
        assert content["bottom_logits"] == [str(token) for token in order[:10]]


def test_the_same_tokens_again_are_a_repetition(twin, tmp_path):
    text = torch.arange(3, 15)
    sweep = ah.corpus.sweep(twin, [text, text, text + 1], ah.corpus.SweepSettings(context=12))
    folder = ah.formats.write_features(twin, sweep, tmp_path / "new", ["L1.N5"])
    content = json.loads((folder / f"{cantor(1, 5)}.json").read_text(encoding="utf-8"))
    examples = [each for group in content["examples_quantiles"] for each in group["examples"]]
    assert sum(each["is_repeated_datapoint"] for each in examples) == 1
    assert len(examples) == 3


def test_no_two_pairs_have_one_number():
    pairs = [(layer, index) for layer in range(60) for index in range(60)]
    assert len({cantor(*pair) for pair in pairs}) == len(pairs)
    assert [cantor(0, 0), cantor(1, 0), cantor(0, 1), cantor(2, 0)] == [0, 1, 2, 3]


def test_stacks_and_experts_have_numbers_of_their_own(tmp_path):
    for name in ("T5ForConditionalGeneration", "MixtralForCausalLM"):
        twin = ah.convert(zoo.build(name).bridge)
        sweep = ah.corpus.sweep(twin, [torch.arange(2, 12)], ah.corpus.SweepSettings(context=10))
        folder = ah.formats.write_features(twin, sweep, tmp_path / name)
        contents = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()}
        assert len(contents) == len(sweep.neurons()) == len({content["label"] for content in contents.values()})
        for file, content in contents.items():
            check_feature(content)
            assert file == f"{content['index']}.json"


def test_bad_input(twin, tiny, sweep, smollm, tmp_path):
    (tmp_path / "file").write_text("something")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("something")
    other = ah.convert(tiny("llama", seed=1))
    new = tmp_path / "new"
    overflown = replace(sweep, statistics=replace(sweep.statistics, highest=sweep.statistics.highest.clone()))
    overflown.statistics.highest[70] = torch.nan
    refused = {
        "activations that are finite, got others of L1.N6": lambda: ah.formats.write_features(twin, overflown, new),
        "an attention-only twin": lambda: ah.formats.write_features(smollm, sweep, new),
        "a finished sweep": lambda: ah.formats.write_features(twin, replace(sweep, done=0), new),
        "a sweep with the same weights": lambda: ah.formats.write_features(other, sweep, new),
        "a whole neuron, up to L2.N63, got L2.N64": lambda: ah.formats.write_features(twin, sweep, new, ["L2.N64"]),
        "a whole neuron, up to L2.N63, got L1.A2": lambda: ah.formats.write_features(twin, sweep, new, ["L1.A2"]),
        "a whole neuron, up to L2.N63, got L1.N2.0": lambda: ah.formats.write_features(twin, sweep, new, ["L1.N2.0"]),
        "a label such as": lambda: ah.formats.write_features(twin, sweep, new, ["../N2"]),
        "at least one neuron": lambda: ah.formats.write_features(twin, sweep, new, []),
        "the name of a new folder, got .*file": lambda: ah.formats.write_features(twin, sweep, tmp_path / "file"),
        "the name of a new folder, got .*full": lambda: ah.formats.write_features(twin, sweep, tmp_path / "full"),
        "a name in an existing folder": lambda: ah.formats.write_features(twin, sweep, new / "below"),
        "a path that a file can have": lambda: ah.formats.write_features(twin, sweep, "a\0b"),
    }
    for message, call in refused.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_is_left_half_written(twin, sweep, tmp_path, monkeypatch, error):
    made, count = features.feature, []

    def failing(*arguments):
        count.append(arguments)
        if len(count) == 5:
            raise error
        return made(*arguments)

    monkeypatch.setattr(features, "feature", failing)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else ah.AllHeadsError
    with pytest.raises(expected):
        ah.formats.write_features(twin, sweep, tmp_path / "new")
    assert len(count) == 5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_comes_meanwhile_is_not_replaced(twin, sweep, tmp_path, monkeypatch):
    made = features.feature

    def meanwhile(*arguments):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / "mine").write_text("something")
        return made(*arguments)

    monkeypatch.setattr(features, "feature", meanwhile)
    with pytest.raises(ah.AllHeadsError, match="the name of a new folder"):
        ah.formats.write_features(twin, sweep, tmp_path / "new", ["L0.N0"])
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "mine"]
