"""A sweep in one go, in parts, interrupted, merged, saved: always the same; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import allheads as ah
from allheads.corpus import checkpoint, run_sweep
from allheads.corpus.token_windows import PIECE, TextFiles, windows
from allheads.disk import tensor_digest
from allheads.untrusted import parsed, sealed, unsealed
from allheads_labs import zoo

SIZES = ah.corpus.SweepSettings(context=16, batch=4, every=3)


@pytest.fixture(scope="module")
def texts():
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(96, (50 + number,), generator=draw) for number in range(12)]


@pytest.fixture(scope="module")
def whole(small_twin, texts):
    return ah.corpus.sweep(small_twin, texts, SIZES)


def _same(one, other):
    return all(
        torch.equal(tensor, getattr(other.statistics, name)) for name, tensor in one.statistics.tensors().items()
    )


def _close(one, other, dtype=torch.float32):
    """Sums over some thirty positions, each off by a few roundings of the largest activation; squares by twice that."""
    for name, tensor in one.statistics.tensors().items():
        there = getattr(other.statistics, name)
        if tensor.is_floating_point():
            allowed = 128 * torch.finfo(dtype).eps * max(1.0, float(there.abs().max()))
            assert float((tensor - there).abs().max()) <= allowed, name
        elif name == "histogram":  # within a rounding of an edge a value may be on either side
            assert torch.equal(tensor.sum(1), there.sum(1))
            assert int((tensor - there).abs().sum()) <= 8
        else:
            assert torch.equal(tensor, there), name


def test_batches_do_not_matter(small_twin, texts, whole):
    assert whole.finished
    assert whole.settings["windows"] == 48
    assert whole.settings["parts"] == 4
    _close(ah.corpus.sweep(small_twin, texts, ah.corpus.SweepSettings(context=16, batch=7, every=1)), whole)


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_two_sweeps_are_one(small_twin, texts, whole, cut):
    parts = [ah.corpus.sweep(small_twin, each, replace(SIZES, like=whole)) for each in (texts[:cut], texts[cut:])]
    merged = parts[0].merge(parts[1])
    _close(merged, whole)
    assert merged.finished
    assert merged.settings["texts"] == 12
    assert merged.neurons()["token"].to_numpy() == pytest.approx(whole.neurons()["token"].to_numpy(), abs=1e-4)


def test_files(small_twin, texts, whole, tmp_path):
    path = whole.save(tmp_path / "whole.safetensors")
    again = ah.corpus.Sweep.load(path)
    assert _same(again, whole)
    assert again.settings == whole.settings
    assert torch.equal(again.groups, whole.groups)
    assert [each.name for each in tmp_path.iterdir()] == ["whole.safetensors"]
    written = ah.corpus.sweep(small_twin, texts, SIZES, out=tmp_path / "other.safetensors")
    assert _same(written, whole)
    assert (tmp_path / "other.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("stop", [0, 3, 7, 11])
def test_interrupted_and_resumed(small_twin, texts, whole, tmp_path, monkeypatch, stop):
    out = tmp_path / "sweep.safetensors"
    count, seen = run_sweep.count_batch, []

    def interrupted(twin, batch, *rest):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(batch)
        count(twin, batch, *rest)

    monkeypatch.setattr(run_sweep, "count_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ah.corpus.sweep(small_twin, texts, SIZES, out=out)
    assert out.exists() == (stop >= 3)
    if stop >= 3:
        begun = ah.corpus.Sweep.load(out)
        assert (begun.done, begun.finished) == (stop // 3, False)
        assert begun.statistics.positions < whole.statistics.positions
        with pytest.raises(ah.AllHeadsError, match="two finished sweeps"):
            begun.merge(whole)
    again = []
    monkeypatch.setattr(
        run_sweep, "count_batch", lambda twin, batch, *rest: (again.append(batch), count(twin, batch, *rest))
    )
    assert _same(ah.corpus.sweep(small_twin, texts, SIZES, out=out, resume=True), whole)
    assert len(again) == 12 - stop // 3 * 3
    assert out.read_bytes() == whole.save(tmp_path / "whole.safetensors").read_bytes()
    # What is finished is not done again.
    again.clear()
    assert _same(ah.corpus.sweep(small_twin, texts, SIZES, out=out, resume=True), whole)
    assert again == []


def test_resuming_something_else(small, small_twin, texts, whole, tmp_path):
    out = whole.save(tmp_path / "sweep.safetensors")
    other = ah.convert(ah.load(small))
    with torch.no_grad():
        other.original_model.model.layers[0].self_attn.q_proj.weight[0, 0] += 1e-3
    slots = ah.convert(ah.load(small))
    refused = {
        "a new file, or resume=True": lambda: ah.corpus.sweep(small_twin, texts, SIZES, out=out),
        "the same corpus": lambda: ah.corpus.sweep(small_twin, texts[:-1], SIZES, out=out, resume=True),
        "the same batch, got 4 instead of 2": lambda: ah.corpus.sweep(
            small_twin, texts, replace(SIZES, batch=2), out=out, resume=True
        ),
        "the same context": lambda: ah.corpus.sweep(
            small_twin, texts, replace(SIZES, context=12), out=out, resume=True
        ),
        "the same weights": lambda: ah.corpus.sweep(other, texts, SIZES, out=out, resume=True),
        "the same groups": lambda: ah.corpus.sweep(
            small_twin, texts, replace(SIZES, like=ah.corpus.sweep(small_twin, texts[:2], SIZES)), out=out, resume=True
        ),
    }
    for message, call in refused.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    with slots.evaluated("slots"), pytest.raises(ah.AllHeadsError, match="the same evaluation"):
        ah.corpus.sweep(slots, texts, SIZES, out=out, resume=True)
    assert _same(ah.corpus.Sweep.load(out), whole)


def test_merging_something_else(small_twin, texts, whole):
    with pytest.raises(ah.AllHeadsError, match="Sweep with like="):
        whole.merge(ah.corpus.sweep(small_twin, texts[:3], SIZES))
    with pytest.raises(ah.AllHeadsError, match="the same context"):
        whole.merge(ah.corpus.sweep(small_twin, texts, replace(SIZES, context=12, like=whole)))


def test_bad_input(smollm, small_twin, tiny, tmp_path, texts):
    short = ah.corpus.SweepSettings(context=8)
    refused = {
        "an attention-only twin": lambda: ah.corpus.sweep(smollm, texts),
        "a context of 2 to n_ctx = 64 tokens, got 128. Try 64": lambda: ah.corpus.sweep(
            small_twin, texts, replace(short, context=128)
        ),
        "batch and every of at least 1": lambda: ah.corpus.sweep(small_twin, texts, replace(short, batch=0)),
        "texts with a second token": lambda: ah.corpus.sweep(small_twin, ["word1"], short),
        "texts with a second token, got none": lambda: ah.corpus.sweep(small_twin, [], short),
        "ids from 0 to 95, got 3 to 96": lambda: ah.corpus.sweep(small_twin, [torch.tensor([3, 96])], short),
        "token ids .pos., got torch.float32": lambda: ah.corpus.sweep(small_twin, [torch.ones(3)], short),
        "for a model without a tokenizer": lambda: ah.corpus.sweep(ah.convert(tiny("llama")), ["text"], short),
        "a path in a folder that exists": lambda: ah.corpus.sweep(
            small_twin, texts, short, out=tmp_path / "no" / "where"
        ),
        "a readable UTF-8 text file": lambda: ah.corpus.sweep(
            small_twin, ah.corpus.TextFiles([tmp_path / "no.txt"]), short
        ),
    }
    for message, call in refused.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    twin = ah.convert(tiny("gpt2"))
    with twin.banks[1].edit():
        pass
    with pytest.raises(ah.AllHeadsError, match="edited heads in L1"):
        ah.corpus.sweep(twin, texts, short)


def test_files_that_are_no_sweep(tmp_path):
    path = tmp_path / "file.safetensors"
    about = json.dumps({"version": 99, "done": 0, "settings": {}})
    for metadata in (None, {"allheads.sweep": "{"}):
        save_file({"x": torch.zeros(1)}, path, metadata)
        with pytest.raises(ah.AllHeadsError, match=r"a file that ah.corpus.sweep has written"):
            ah.corpus.Sweep.load(path)
    save_file({"x": torch.zeros(1)}, path, {checkpoint.KEY: about})
    with pytest.raises(ah.AllHeadsError, match="a sweep of version 6, got 99"):
        ah.corpus.Sweep.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ah.AllHeadsError, match=r"a file that ah.corpus.sweep has written"):
        ah.corpus.Sweep.load(path)
    with pytest.raises(ah.AllHeadsError, match="a folder that exists"):
        checkpoint.write(tmp_path / "no" / "where", {}, {}, 0)


def test_a_flipped_bit_is_noticed_when_a_sweep_goes_on(small_twin, texts, whole, tmp_path):
    """Anywhere: in counts, sums, examples, groups, sizes and settings."""
    out = whole.save(tmp_path / "sweep.safetensors")
    good = out.read_bytes()
    places = torch.randint(8 * len(good), (60,), generator=torch.Generator().manual_seed(0)).tolist()
    done = 8 * (good.index(b"done") + 8)  # the digit
    for place in [8 * good.index(b"texts") + 1, *places, done]:
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        out.write_bytes(bad)
        with pytest.raises(ah.AllHeadsError):
            ah.corpus.Sweep.load(out)
    with pytest.raises(ah.AllHeadsError, match="checksum"):
        ah.corpus.sweep(small_twin, texts, SIZES, out=out, resume=True)


def _forged(path, change):
    """Other settings or tensors, sealed again: what no accident would do."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = unsealed(parsed(file.metadata()[checkpoint.KEY], dict))
    change(about, tensors)
    about["sha256"] = {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}
    save_file(tensors, path, {checkpoint.KEY: json.dumps(sealed(about))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about, _: about.update(done=-3), "-3 parts done, of 4"),
        (lambda about, _: about.update(done=5), "5 parts done, of 4"),
        (lambda about, _: about.update(done=True), "a valid integer"),
        (lambda about, _: about["settings"]["stems"].append(["L9", 2**63]), "stems.2"),
        (lambda about, _: about["settings"]["stems"].append(["L9", 2**39]), "other than 549755813984 neurons"),
        (lambda about, _: about["settings"].update(stems=[["L0", -48], ["L1", 144]]), "stems.0"),
        (lambda about, _: about["settings"].pop("parts"), "settings.parts|parts: field required"),
        (lambda about, _: about["settings"].update(more=1), "more"),
        (lambda about, _: about["settings"]["heads"].pop(), "attention of shape"),
        (lambda about, _: about.update(settings=None), "object"),
        (lambda _, tensors: tensors.pop("open"), "'open'"),
        (lambda _, tensors: tensors.update(more=torch.ones(1)), "'more'"),
        (lambda _, tensors: tensors.update(open=tensors["open"].double()), "open of shape"),
        (lambda _, tensors: tensors["groups"].fill_(256), "other groups"),
        (lambda _, tensors: tensors["example_tokens"].fill_(-1), "examples without their tokens"),
    ],
)
def test_a_forged_file_is_refused(whole, tmp_path, change, message):
    out = whole.save(tmp_path / "sweep.safetensors")
    _forged(out, change)
    with pytest.raises(ah.AllHeadsError, match=message):
        ah.corpus.Sweep.load(out)


def test_a_header_is_bounded_before_it_is_read(tmp_path):
    deep = "[" * 1000 + "]" * 1000
    for metadata in (deep, "[" + "0," * 5_000_000 + "0]", "null", "3", '{"version": 3}'):
        path = tmp_path / "file.safetensors"
        save_file({"x": torch.zeros(1)}, path, {checkpoint.KEY: metadata})
        with pytest.raises(ah.AllHeadsError, match=r"a file that ah.corpus.sweep has written|a sweep of version 6"):
            ah.corpus.Sweep.load(path)


def test_two_sweeps_into_one_file(small_twin, texts, tmp_path, monkeypatch):
    out, count, refused = tmp_path / "sweep.safetensors", run_sweep.count_batch, []

    def meanwhile(*batch):
        monkeypatch.undo()
        with pytest.raises(ah.AllHeadsError, match=r"nobody else is writing, got .*sweep.safetensors") as error:
            ah.corpus.sweep(small_twin, texts, SIZES, out=out, resume=True)
        refused.append(error)
        count(*batch)

    monkeypatch.setattr(run_sweep, "count_batch", meanwhile)
    ah.corpus.sweep(small_twin, texts, SIZES, out=out)
    assert len(refused) == 1
    assert ah.corpus.Sweep.load(out).finished


def test_text_files(small_twin, tmp_path):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("word1 word2\n\nword3 word4 word5\n", encoding="utf-8")
    second.write_text("word6 word7", encoding="utf-8")
    found = [(each.text, each.start, each.ids) for each in windows(small_twin, TextFiles([first, second]), 3)]
    assert found == [(0, 0, [3, 4, 5]), (0, 3, [6, 7]), (1, 0, [8, 9])]
    found = [(each.text, each.ids) for each in windows(small_twin, TextFiles([first, second], lines=True), 3)]
    assert found == [(0, [3, 4]), (1, [5, 6, 7]), (2, [8, 9])]


def test_large_files_are_read_piece_by_piece(small_twin, tmp_path):
    path = tmp_path / "large.txt"
    path.write_text("word1 word2 word3\n" * 20_000, encoding="utf-8")
    pieces = [piece for _, piece in TextFiles([path])]
    assert len(pieces) > 4
    assert all(len(piece) < PIECE + 100 and piece.endswith("\n") for piece in pieces)
    ids = [token for each in windows(small_twin, TextFiles([path]), 16) for token in each.ids]
    assert ids == [3, 4, 5] * 20_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_is_not_seen(dtype):
    """Not even by a network that looks both ways."""
    twin = ah.convert(zoo.build("BertForMaskedLM", dtype=dtype).bridge)
    ids = torch.randint(1, 96, (16,), generator=torch.Generator().manual_seed(0))
    texts = [ids, ids[:5], ids[:9]]
    together, alone = (
        ah.corpus.sweep(twin, texts, ah.corpus.SweepSettings(context=16, batch=batch)) for batch in (3, 1)
    )
    _close(together, alone, dtype)
