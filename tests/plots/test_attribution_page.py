"""Pictures of attributions and graphs show the numbers they are made of, and load nothing."""

from __future__ import annotations

import re

import pytest
import torch
from plotly.offline import get_plotlyjs

import allheads as ah


@pytest.fixture(scope="module")
def found(twin, ids):
    return ah.attribute(twin, ids, (3, 5), rule="value")


@pytest.fixture(scope="module")
def flows(twin, ids):
    return ah.graph(twin, ids, (3, 5), budget=15)


def test_figures_show_the_numbers(found):
    bars = ah.plots.attribution(found, "token")
    assert list(bars.data[0].y) == pytest.approx(found.embeddings.tolist())
    assert any("&lt;/script&gt;" in name for name in bars.data[0].x)
    heat = ah.plots.attribution(found, "head")
    assert torch.allclose(torch.tensor(heat.data[0].z), found.heads.sum(-1))
    assert heat.data[0].zmin == -heat.data[0].zmax
    by_layer = ah.plots.attribution(found, "layer")
    sums = found.by_layer().values()
    assert [list(bar.y) for bar in by_layer.data] == [[layer[bar.name] for layer in sums] for bar in by_layer.data]
    assert [sum(layer[kind] for layer in sums) for kind in ("heads", "neurons")] == pytest.approx(
        [float(found.heads_direct.sum()), float(found.neurons_direct.sum())]
    )


def test_a_waterfall_ends_at_the_target(found):
    (bars,) = ah.plots.attribution(found).data
    assert sum(bars.y) == pytest.approx(found.target_value, abs=1e-5)
    assert bars.x[0] == "embeddings, constants" and bars.x[2] == "L0 neurons" and bars.measure[-1] == "total"
    assert bars.y[2] == pytest.approx(float(found.neurons_direct[0].sum()), abs=1e-6)
    with pytest.raises(ah.AllHeadsError, match="by out of token, image, head, layer, waterfall, got 'heads'"):
        ah.plots.attribution(found, "heads")


def test_the_page(twin, found, flows, tmp_path, load_page, monkeypatch):
    monkeypatch.setattr(twin.cfg, "model_name", "<img onerror=x>&")
    path = ah.plots.write_attribution(found, flows, tmp_path / "page.html")
    page = load_page(path)
    assert set(page.pictures) == {"tokens", "heads", "layers", "graph"}
    assert not re.findall(
        r"https?:|\bsrc\s*=|\bhref\s*=|url\(|@import|\bimport\b|fetch\(|XMLHttp",
        re.sub(r"http://www\.w3\.org/[\w/]+", "", page.own_text),  # names of namespaces, which nobody fetches
    )
    assert "<img" not in path.read_text("utf-8").replace(get_plotlyjs(), "")
    assert "<" not in page.scripts["application/json"]
    assert f"{found.target_value:.4f}" in page.own_text
    for each in found.top(20):
        assert f"<th>{each.label}</th>" in page.own_text
    assert f"{flows.nodes[0].inflow['V'].left_out:+.3f} is left out" in page.own_text


def test_places_that_cannot_be_written(found, flows, tmp_path):
    with pytest.raises(ah.AllHeadsError, match="a file to write to"):
        ah.plots.write_attribution(found, flows, tmp_path)
    with pytest.raises(ah.AllHeadsError, match="a path in a folder that exists"):
        ah.plots.write_attribution(found, flows, tmp_path / "no" / "page.html")
