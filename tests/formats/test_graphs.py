"""A folder of graphs: its list, and what is refused before anything is written."""

from __future__ import annotations

import json

import pytest
import torch

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph


@pytest.fixture(scope="module")
def graph(tiny):
    return ah.graph(ah.convert(tiny("llama")), torch.tensor([1, 2, 3, 4]), 7, budget=8)


def test_the_list_has_every_graph_once(graph, tmp_path):
    folder = tmp_path / "new" / "graphs"
    for name in ("one", "two", "one"):
        ah.formats.write_graph(graph, folder, name)
    listed = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert [each["slug"] for each in listed] == ["two", "one"]
    assert {path.name for path in folder.iterdir()} == {"graph-metadata.json", "one.json", "two.json"}
    assert all({"slug", "scan", "prompt", "prompt_tokens", "node_threshold"} <= each.keys() for each in listed)
    assert AttributionGraph.load(folder / "two.json") == graph
    assert json.loads((folder / "two.json").read_text())["metadata"]["slug"] == "two"


@pytest.mark.parametrize("name", ["../out", "", ".hidden", "a/b", "graph-metadata", 3])
def test_names_that_leave_the_folder_are_refused(graph, tmp_path, name):
    with pytest.raises(ah.AllHeadsError, match="a name of letters"):
        ah.formats.write_graph(graph, tmp_path / "graphs", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", '{"graphs": 1}', "{}"])
def test_a_list_that_is_none_is_left_alone(graph, tmp_path, content):
    path = tmp_path / "graph-metadata.json"
    path.write_text(content)
    with pytest.raises(ah.AllHeadsError, match="a list of graphs"):
        ah.formats.write_graph(graph, tmp_path, "one")
    assert path.read_text() == content and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ah.AllHeadsError, match="a folder to write into"):
        ah.formats.write_graph(graph, path, "one")
