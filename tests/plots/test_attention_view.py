"""The attention view shows the model's patterns, whatever they come from, and refuses what it cannot draw."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import T5Config, T5ForConditionalGeneration

import allheads as ah
from allheads.errors import AllHeadsError
from allheads.plots import web
from allheads.plots.packing import unpack


def shown(view, label):
    head = next(head for head in view.data["heads"] if head["label"] == label)
    rows, columns = (view.data["names"][head[side]] for side in ("rows", "columns"))
    levels = torch.tensor(unpack(head["weights"]))
    assert levels.shape == (len(rows), len(columns))
    return levels.float() / 255, rows, columns


def test_all_ordinary_heads_of_a_model(twin, source, ids, cache):
    for model in (twin, source):
        view = ah.plots.attention(model, ids)
        assert len(view.data["heads"]) == 12
        for layer in range(3):
            for head in range(4):
                weights, rows, columns = shown(view, f"L{layer}.A{head}")
                assert rows is columns and rows[:2] == (["</script>", "<!--"] if model is twin else ["0", "1"])
                true = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
                assert (weights - true).abs().max() <= view.data["error"] + 1e-6 <= 0.005


def test_neurons_show_their_slots_and_never_tokens_against_tokens(twin, ids, cache):
    view = ah.plots.attention(twin, ids, heads=["L2.N5", "L1.A2"])
    bank = twin.banks[2]
    assert [head["label"] for head in view.data["heads"]] == ["L2.N5.0", "L2.N5.1", "L1.A2"]
    for part, count in enumerate(bank.gates.bias_tokens):
        weights, rows, columns = shown(view, f"L2.N5.{part}")
        assert columns == ["self", *(f"bias {slot}" for slot in range(1, 1 + count))] and len(rows) == ids.shape[1]
        true = cache["blocks.2.mlp.hook_pattern"][0, part * bank.d_mlp + 5, :, : 1 + count]
        assert (weights - true).abs().max() <= 0.002


def test_filters_by_layer(twin, ids):
    view = ah.plots.attention(twin, ids, layers=[1])
    assert {head["stem"] for head in view.data["heads"]} == {"L1"}


def test_caches_and_tensors(twin, source, ids, cache):
    direct = ah.plots.attention(twin, ids).data["heads"]
    from_cache = ah.plots.attention(cache, source_words := ["t"] * ids.shape[1])
    assert [head["weights"] for head in from_cache.data["heads"]] == [head["weights"] for head in direct]
    assert from_cache.data["names"] == [source_words]
    layers = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(3)]
    for given in (layers, [layer[0] for layer in layers]):
        assert [h["weights"] for h in ah.plots.attention(given).data["heads"]] == [h["weights"] for h in direct]
    one = ah.plots.attention(layers[0][0])
    assert one.data["names"][0][:3] == ["0", "1", "2"] and len(one.data["heads"]) == 4


def _translator(attention):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=20,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        attn_implementation=attention,
    )
    model = T5ForConditionalGeneration(config).eval()
    return build_bridge_from_module(model, "T5ForConditionalGeneration", hf_config=config, model_name="t5")


@pytest.fixture(scope="module")
def translator():
    return ah.convert(_translator("eager"))


def test_attention_that_shows_no_pattern():
    with pytest.raises(AllHeadsError, match="Load it with attn_implementation='eager'"):
        ah.plots.attention(_translator("sdpa"), torch.arange(5)[None], decoder=torch.arange(4)[None])


def test_an_encoder_decoder_looks_across(translator):
    read, written = torch.arange(2, 9)[None], torch.arange(3, 8)[None]
    view = ah.plots.attention(translator, read, decoder=written)
    with torch.no_grad():
        cache = translator.run_with_cache(read, decoder_input=written)[1]
    kinds = {head["label"][:3] for head in view.data["heads"]}
    assert {"EL0", "DL0"} <= kinds
    for label, point in (
        ("DL1.X1", "decoder_blocks.1.cross_attn.hook_pattern"),
        ("DL1.A1", "decoder_blocks.1.self_attn.hook_pattern"),
        ("EL0.A1", "encoder_blocks.0.attn.hook_pattern"),
    ):
        weights, rows, columns = shown(view, label)
        assert (weights - cache[point][0, 1]).abs().max() <= 0.002
        assert (len(rows), len(columns)) == weights.shape
    assert shown(view, "DL1.X1")[0].shape == (5, 7)
    same = ah.plots.attention(cache, list("abcdefg"), decoder=list("uvwxy"), heads="DL1.X1")
    assert shown(same, "DL1.X1")[1:] == (list("uvwxy"), list("abcdefg"))


def test_rectangular_tensors_look_from_a_decoder():
    view = ah.plots.attention(torch.full((1, 2, 4), 0.25), list("abcd"), decoder=list("xy"))
    assert shown(view, "L0.A0")[1:] == (list("xy"), list("abcd"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t, i: ah.plots.attention(t, i, heads=["L1.A9"]), r"a head that is there, such as L1\.A\d"),
        (lambda t, i: ah.plots.attention(t, i, heads=["L9.N0"]), "a head of this twin"),
        (lambda t, i: ah.plots.attention(t, i, heads=["dog"]), "a label such as L3.A5"),
        (lambda t, i: ah.plots.attention(t, i, heads=[]), "at least one head to draw"),
        (lambda t, i: ah.plots.attention(t, i, layers=[7]), "at least one head to draw"),
        (lambda t, i: ah.plots.attention(t), "a text for the model to read"),
        (lambda t, i: ah.plots.attention(t, i.repeat(2, 1)), "one text, got 2"),
        (lambda t, i: ah.plots.attention(torch.eye(3)[None], list("ab")), "3 tokens, as L0.A0 has, got 2"),
        (lambda t, i: ah.plots.attention(torch.eye(3)[None], "abc"), "a list of token names"),
        (lambda t, i: ah.plots.attention(torch.eye(3)), r"patterns \[head row column\] of one text"),
        (lambda t, i: ah.plots.attention(torch.eye(3).expand(2, 1, 3, 3)), r"patterns \[head row column\] of one text"),
        (lambda t, i: ah.plots.attention({"blocks.0.hook_resid_pre": torch.eye(3)}), "a cache with attn.hook_pattern"),
        (lambda t, i: ah.plots.attention(7), "a model, a cache, or patterns"),
        (lambda t, i: ah.plots.attention(torch.full((1, 2, 2), torch.nan)), "finite weights, got NaN"),
    ],
)
def test_requests_that_make_no_sense(twin, ids, call, words):
    with pytest.raises(AllHeadsError, match=words):
        call(twin, ids)


def test_too_many_tokens_are_refused_with_the_size_they_would_have():
    long = torch.zeros(1).expand(270, 50_000, 50_000)
    with pytest.raises(AllHeadsError, match=r"2,700\.0 GB of weights and a page of about 405\.0 MB"):
        ah.plots.attention(long)


def test_too_long_for_a_model_is_refused_before_it_runs(source, monkeypatch):
    monkeypatch.setattr(source.cfg, "n_ctx", 10**6)
    with pytest.raises(AllHeadsError, match="at most 4,096 tokens"):
        ah.plots.attention(source, torch.zeros(1, 50_000, dtype=torch.long))


def test_rows_that_are_not_probabilities_are_drawn_with_a_warning():
    with pytest.warns(UserWarning, match=r"L0\.A1 has rows that are not probabilities, off by up to 0\.7"):
        ah.plots.attention(torch.stack([torch.eye(2), torch.tensor([[1.7, 0.0], [0.5, 0.5]])]))
    with pytest.warns(UserWarning, match=r"off by up to 0\.5"):
        ah.plots.attention(torch.tensor([[[1.5, -0.5], [0.0, 1.0]]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ah.plots.attention(torch.eye(2)[None])


def test_it_is_saved_whole_or_not_at_all(twin, ids, tmp_path):
    view = ah.plots.attention(twin, ids)
    assert view.save(tmp_path / "a.html").read_text("utf-8") == view.html
    for path, words in (
        (tmp_path, "a file to write to"),
        (tmp_path / "no" / "a.html", "a path in a folder that exists"),
        (tmp_path / "a.png", "a path that ends in .html"),
    ):
        with pytest.raises(AllHeadsError, match=words):
            view.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.html"]


def test_the_page_loads_nothing_and_a_frame_holds_all_of_it(twin, ids, load_page):
    view = ah.plots.attention(twin, ids)
    page = view.html
    assert not re.findall(r"https?:|\bsrc\s*=|\bhref\s*=|url\(|@import|\bimport\b|fetch\(|XMLHttp", page)
    assert "</script>" not in page.split('id="data">')[1].split("</script>")[0]
    frame = view._repr_html_()
    assert frame.startswith("<iframe srcdoc=") and frame.count("<") == 2
    assert "0.0 MB" in repr(view) or "0.1 MB" in repr(view)


def test_64_tokens_of_all_heads_of_smollm_fit_in_a_notebook(smollm):
    ids = torch.arange(1000, 1064)[None]
    view = ah.plots.attention(smollm, ids)
    assert len(view.data["heads"]) == 270
    assert len(view.html.encode()) <= 2e6


def test_the_colours_can_be_told_apart_by_their_lightness_alone(luminance):
    """Whoever sees no hue sees the order; text on the page's colours reaches the contrast of WCAG AA."""
    style = web.read("view.css")
    themes = re.findall(r"--scale: ([^;]+);", style)
    assert len(themes) == 2
    for scale, dark in zip(themes, (False, True), strict=True):
        stops = [luminance([int(part) for part in stop.split()]) for stop in scale.split(",")]
        steps = [b - a for a, b in pairwise(stops)]
        assert all(step > 0.01 if dark else step < -0.01 for step in steps)
    for theme in re.findall(r"\{ color-scheme:[^}]+\}", style):
        colours = dict(re.findall(r"--(\w+): #(\w{6})", theme))
        page = luminance(bytes.fromhex(colours["page"]))
        for name in ("ink", "soft", "focus", "good", "bad"):
            light, dark = sorted((page, luminance(bytes.fromhex(colours[name]))), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name
