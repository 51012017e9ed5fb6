"""Pictures of attributions and graphs show the numbers they are made of, and load nothing."""

from __future__ import annotations

import re

import pytest
import torch
from plotly.offline import get_plotlyjs

import allheads as ah


@pytest.fixture(scope="module")
def found(twin, ids):
    return ah.attribute(twin, ids, (3, 5), rule="frozen")


@pytest.fixture(scope="module")
def flows(twin, ids):
    return ah.graph(twin, ids, (3, 5), budget=15)


def test_figures_show_the_numbers(found):
    bars = ah.plots.tokens(found)
    assert list(bars.data[0].y) == pytest.approx(found.embeddings.tolist())
    assert any("&lt;/script&gt;" in name for name in bars.data[0].x)
    heat = ah.plots.heads(found)
    assert torch.allclose(torch.tensor(heat.data[0].z), found.heads.sum(-1))
    assert heat.data[0].zmin == -heat.data[0].zmax
    by_layer = ah.plots.layers(found)
    assert [list(bar.y) for bar in by_layer.data] == [each.tolist() for each in found.by_layer().values()]


def test_a_graph_is_drawn_whole(flows):
    drawn = ah.plots.graph(flows, edges=20)
    *lines, nodes = drawn.data
    assert len(lines) == 20
    assert f"20 of {len(flows.edges)} edges" in drawn.layout.title.text
    assert len(nodes.x) == len(flows.nodes)
    assert len({*zip(nodes.x, nodes.y, strict=True)}) == len(flows.nodes)  # none hides another
    widest = max(lines, key=lambda line: line.line.width)
    largest = max(flows.edges, key=lambda edge: abs(edge.weight))
    places = dict(zip((node.name for node in flows.nodes), zip(nodes.x, nodes.y, strict=True), strict=True))
    assert [*zip(widest.x, widest.y, strict=True)] == [places[largest.source], places[largest.target]]
    by_effect = sorted(zip((abs(node.effect) for node in flows.nodes[1:]), nodes.marker.size[1:], strict=True))
    assert [size for _, size in by_effect] == sorted(size for _, size in by_effect)
    left = flows.nodes[0].inflow["V"].left_out
    assert f"{left:+.3f}" in nodes.text[0]


def test_the_page(found, flows, tmp_path, load_page):
    path = ah.plots.write_attribution(found, flows, tmp_path / "page.html", model="<img onerror=x>&")
    page = load_page(path)
    assert set(page.plots) == {"tokens", "heads", "layers", "graph"}
    assert not re.findall(r"https?:|\bsrc\s*=|\bhref\s*=|url\(|@import|\bimport\b|fetch\(|XMLHttp", page.own_text)
    assert "<img" not in path.read_text("utf-8").replace(get_plotlyjs(), "")
    assert "<" not in page.scripts[1]
    assert f"{found.target_value:.4f}" in page.own_text
    for each in found.top(20):
        assert f"<th>{each.label}</th>" in page.own_text
    assert f"{flows.nodes[0].inflow['V'].left_out:+.3f} is left out" in page.own_text


def test_places_that_cannot_be_written(found, flows, tmp_path):
    with pytest.raises(ah.AllHeadsError, match="a file to write to"):
        ah.plots.write_attribution(found, flows, tmp_path)
    with pytest.raises(ah.AllHeadsError, match="a path in a folder that exists"):
        ah.plots.write_attribution(found, flows, tmp_path / "no" / "page.html")
