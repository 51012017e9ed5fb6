"""Kept units: none is trusted that is damaged, another's, or of another model or text than the one that is read now."""

from __future__ import annotations

import hashlib
import json
import math
import random

import pytest
import torch

import allheads as ah
from allheads_labs.faithfulness.lab import lab as faithfulness
from allheads_labs.kit import results
from allheads_labs.kit.lab import Lab, Unit
from allheads_labs.kit.running import run
from allheads_labs.physics.lab import lab as physics
from allheads_labs.training import lab as training

UNIT = Unit({"size": 3, "words": ["a", "b"]}, 4, 1.0)
FOUND = {"loss": {"start": 0.625, "end": 0.1}, "shares": [[0.1, 0.2], [0.3, 0.4]], "name": "näme", "none": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLHEADS_CACHE", str(tmp_path))


@pytest.fixture
def lab():
    return Lab("flips", 1, lambda quick, seeds: [UNIT], lambda unit: FOUND, lambda results: {})


def stored(lab: Lab, content: str) -> None:
    """A file whose checksum is right, whatever it says."""
    content = content.replace("SETTING", json.dumps(UNIT.setting))
    path = results.path_of(lab, UNIT)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(results.with_checksum(content))


def test_no_flipped_byte_is_ever_a_value(lab, capsys):
    """The unit is what it was, or it is made again and somebody is told; and nothing else is raised."""
    (kept,) = run(lab, quick=True, seeds=1)
    path, draw = results.path_of(lab, UNIT), random.Random(0)
    whole = path.read_bytes()
    assert results.fetch(lab, UNIT) == kept
    assert capsys.readouterr().err == ""
    for flip in range(600):
        damaged = bytearray(whole)
        at = draw.randrange(len(whole)) if flip >= len(whole) else flip
        damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert results.fetch(lab, UNIT) is None, damaged
        assert f"{path} is damaged" in capsys.readouterr().err
    for cut in (0, 1, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert results.fetch(lab, UNIT) is None
    (again,) = run(lab, quick=True, seeds=1)
    assert again.found == kept.found
    assert results.fetch(lab, UNIT) == again


@pytest.mark.parametrize(
    "content",
    [
        '{"setting": SETTING, "seed": 4, "found": %s, "seconds": 1.0}' % ("[" * 1000 + "]" * 1000),
        '{"setting": SETTING, "seed": 4, "found": {"a": %s}, "seconds": 1.0}' % ("[" * 100_000 + "]" * 100_000),
        '{"setting": SETTING, "seed": 4, "found": {"loss": NaN}, "seconds": 1.0}',
        '{"setting": SETTING, "seed": 4, "found": [], "seconds": 1.0}',
        '{"setting": SETTING, "seed": 4, "found": {}, "seconds": "1"}',
        '{"setting": SETTING, "seed": 4, "found": {}, "seconds": -1.0}',
        '{"setting": SETTING, "seed": 4, "found": {}}',
        '{"setting": SETTING, "seed": 5, "found": {}, "seconds": 1.0}',
        '{"setting": {"size": 4}, "seed": 4, "found": {}, "seconds": 1.0}',
        "[]",
        "",
    ],
    ids=range(11),
)
def test_what_has_a_checksum_and_is_no_result_of_this_unit_is_not_trusted(lab, content, capsys):
    stored(lab, '{"setting": SETTING, "seed": 4, "found": {}, "seconds": 1.0}')
    assert results.fetch(lab, UNIT) is not None
    stored(lab, content)
    assert results.fetch(lab, UNIT) is None
    assert "done again" in capsys.readouterr().err


def test_a_file_too_large_is_not_read(lab, monkeypatch, capsys):
    run(lab, quick=True, seeds=1)
    monkeypatch.setattr(results, "LARGEST", 50)
    assert results.fetch(lab, UNIT) is None
    assert "damaged" in capsys.readouterr().err


def test_the_checksum_is_that_of_the_result(lab):
    run(lab, quick=True, seeds=1)
    kept = json.loads(results.path_of(lab, UNIT).read_bytes())
    content = json.dumps(kept["result"], allow_nan=False)
    assert kept["sha256"] == hashlib.sha256(content.encode()).hexdigest()
    assert math.isfinite(kept["result"]["seconds"])


def changed_gain(twin):
    with torch.no_grad():
        next(parameter for name, parameter in twin.original_model.named_parameters() if "norm" in name)[0] += 1e-6


def swapped_weights(twin):
    """Two entries change places: every sum over all of them stays."""
    W = twin.banks[0].W_in
    with torch.no_grad():
        W[0, 0], W[0, 1] = W[0, 1].clone(), W[0, 0].clone()


def changed_setting(twin):
    twin.original_model.config.rms_norm_eps = 1e-5


def changed_words(twin):
    twin.tokenizer.backend_tokenizer.add_tokens(["heads"])


@pytest.mark.parametrize("change", [changed_gain, swapped_weights, changed_setting, changed_words])
def test_a_unit_is_named_by_all_that_was_read_of_the_model(change, worded, worded_twin):
    def prints(twin):
        labs = physics(twin), faithfulness(twin, "objects", 2, 0)
        return [{lab.fingerprint(unit) for unit in lab.units(True, 1)} for lab in labs]

    other = ah.convert(ah.load(worded))
    assert prints(worded_twin) == prints(other)
    change(other)
    for before, after in zip(prints(worded_twin), prints(other), strict=True):
        assert not before & after


def test_a_unit_is_named_by_the_text_that_is_learnt(monkeypatch):
    def prints():
        made = training.lab(3)
        return {made.fingerprint(unit) for unit in made.units(True, 1)}

    before = prints()
    assert prints() == before
    monkeypatch.setattr(training, "documentation", lambda: ["another Python's"])
    assert not prints() & before
