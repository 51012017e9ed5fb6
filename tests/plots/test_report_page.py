"""One file, true to the model, that loads nothing, and is written whole or not at all."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plotly.offline import get_plotlyjs

import allheads as ah
from allheads.errors import AllHeadsError
from allheads.plots import report_page
from allheads.plots.packing import unpack


def shown(head):
    """The weights that a view shows of a head."""
    return torch.tensor(unpack(head["weights"])).float() / 255


def test_every_pattern_can_be_chosen_and_is_the_models(page, cache, twin):
    drawn = page.pictures["attention"]
    assert [head["label"] for head in drawn["heads"]] == [
        f"L{layer}.A{h}" for layer in range(3) for h in range(twin.cfg.n_heads)
    ]
    for head in drawn["heads"]:
        label = ah.Label.parse(head["label"])
        pattern = cache[f"blocks.{label.layer}.attn.hook_pattern"][0, label.index]
        assert (shown(head) - pattern).abs().max() <= drawn["error"] <= 0.005


def test_every_layer_of_neurons_can_be_chosen_and_is_the_models(page, cache, twin):
    assert page.dropdowns == [[0, 1, 2]]
    for layer, bank in enumerate(twin.banks):
        view = page.pictures["neurons"]["views"][layer]
        rows = [bank.d_mlp + ah.Label.parse(label).index for label in view["y"]]
        gate = cache[f"blocks.{layer}.mlp.hook_pattern_self"][0, rows]
        assert (page.shown("neurons", layer) - gate).abs().max() <= 0.005
        post = cache[f"blocks.{layer}.mlp.hook_post"][0].abs() * bank.W_out.norm(dim=1)
        sizes = torch.tensor(view["customdata"])
        assert torch.allclose(sizes, post[:, [row - bank.d_mlp for row in rows]].T, rtol=0.01, atol=1e-4)


def test_the_gate_map_and_the_errors_are_exact(page, cache, twin, report):
    shown = page.array(page.pictures["gates"]["figure"]["data"][0]["z"])
    for layer, bank in enumerate(twin.banks):
        gate = cache[f"blocks.{layer}.mlp.hook_pattern_self"][0, bank.d_mlp :]
        assert torch.allclose(shown[layer], gate.mean(0), atol=1e-6)
    assert page.pictures["errors"]["figure"]["data"][1]["y"] == [proof.error for proof in report.layers]


def test_the_largest_rounding_is_stated_and_true(page, cache):
    stated = float(re.search(r"rounding of a shown one is\s+([\d.]+)", page.own_text)[1].rstrip("."))
    drawn = page.pictures["attention"]
    patterns = [(shown(head), ah.Label.parse(head["label"])) for head in drawn["heads"]]
    true = max(
        float((w - cache[f"blocks.{at.layer}.attn.hook_pattern"][0, at.index]).abs().max()) for w, at in patterns
    )
    assert 0 < true <= stated + 5e-5 <= 0.005


def test_nothing_is_loaded(page, path):
    assert path.read_text("utf-8").count(get_plotlyjs()) == 1
    assert not re.findall(r"https?:|\bsrc\s*=|\bhref\s*=|url\(|@import|\bimport\b|fetch\(|XMLHttp", page.own_text)
    assert "default-src 'none'" in page.own_text


def test_tokens_cannot_leave_the_script_they_are_in(page, twin, ids):
    assert set(page.scripts) == {"plotly", "application/json", "module"}
    assert "<" not in page.scripts["application/json"]
    assert "</script>" in page.pictures["attention"]["names"][0]
    names = page.pictures["gates"]["figure"]["data"][0]["x"]
    assert any("&lt;/script&gt;" in name for name in names)
    assert any("$plotly" in name for name in names)


def test_names_of_models_are_escaped(twin, report, ids, tmp_path):
    named = replace(report, model="<img onerror=x>&")
    text = ah.plots.write_report(twin, named, ids, tmp_path / "r.html", layers=[0]).read_text("utf-8")
    assert "<img" not in text.replace(get_plotlyjs(), "")
    assert "&lt;img onerror=x&gt;&amp;" in text


def test_the_verdict_is_the_headline(page, twin, report, ids, tmp_path):
    assert '<h1 class="passed">source and twin are the same</h1>' in page.own_text
    failed = replace(report, max_logit_error=7.0)
    text = ah.plots.write_report(twin, failed, ids, tmp_path / "r.html", layers=[0]).read_text("utf-8")
    assert '<h1 class="failed">source and twin are NOT the same</h1>' in text
    assert "<li>max_logit_error is 7.00e+00, threshold" in text


def test_size(path):
    assert len(get_plotlyjs()) < path.stat().st_size < len(get_plotlyjs()) + 500_000


def test_chosen_layers(twin, report, ids, cache, tmp_path, load_page):
    page = load_page(ah.plots.write_report(twin, report, ids, tmp_path / "r.html", layers=[2]))
    assert [len(dropdown) for dropdown in page.dropdowns] == [1]
    drawn = page.pictures["attention"]
    assert [head["label"] for head in drawn["heads"]] == [f"L2.A{head}" for head in range(4)]
    assert (shown(drawn["heads"][3]) - cache["blocks.2.attn.hook_pattern"][0, 3]).abs().max() <= 0.005
    assert len(page.pictures["gates"]["figure"]["data"][0]["y"]) == 3


def test_a_long_text_is_cut_and_the_page_says_so(twin, report, ids, tmp_path, monkeypatch, load_page):
    monkeypatch.setattr(report_page, "BUDGET", 3 * 4 * 10 * 10 + 5)
    page = load_page(ah.plots.write_report(twin, report, ids, tmp_path / "r.html"))
    assert len(page.pictures["attention"]["names"][0]) == 10
    assert "the first 10 of 23 tokens" in page.own_text


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 0]])
def test_layers_that_are_not_there(twin, report, ids, tmp_path, layers):
    with pytest.raises(AllHeadsError, match="different layers from 0 to 2"):
        ah.plots.write_report(twin, report, ids, tmp_path / "r.html", layers=layers)


def test_a_report_of_another_model(twin, report, ids, tmp_path):
    other = replace(report, layers=report.layers[:2])
    with pytest.raises(AllHeadsError, match="a report of this twin, with 3 layers, got 2"):
        ah.plots.write_report(twin, other, ids, tmp_path / "r.html")


@pytest.mark.parametrize(("place", "words"), [("", "a file to write to"), ("no/r.html", "in a folder that exists")])
def test_places_that_cannot_be_written(twin, report, ids, tmp_path, place, words):
    with pytest.raises(AllHeadsError, match=words):
        ah.plots.write_report(twin, report, ids, tmp_path / place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(twin, report, ids, tmp_path, monkeypatch, step):
    target = tmp_path / "r.html"
    target.write_text("old")
    original = getattr(Path, step)

    def fail(self, *args, **kwargs):
        if step == "write_bytes":
            original(self, b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, step, fail)
        with pytest.raises(AllHeadsError, match=r"to write .*No space left"):
            ah.plots.write_report(twin, report, ids, target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]
    assert target.read_text() == "old"


def test_an_old_file_is_replaced(twin, report, ids, tmp_path):
    target = tmp_path / "r.html"
    target.write_text("old")
    assert ah.plots.write_report(twin, report, ids, str(target)) == target
    assert target.read_text("utf-8").startswith("<!DOCTYPE html>")
