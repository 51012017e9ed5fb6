"""Every result is a table, plain values and a file, and shows itself in a few lines."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pyarrow.parquet
import pytest
import torch

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.formats.circuit import Circuit
from allheads.result import Result
from allheads.twin.autoencoder import SparseAutoencoder


def _autoencoder(twin):
    d_model, draw = twin.cfg.d_model, torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.randn(d_model, 40, generator=draw), "W_dec": torch.randn(40, d_model, generator=draw)}
    biases = {"b_enc": torch.zeros(40), "b_dec": torch.zeros(d_model)}
    return SparseAutoencoder("blocks.1.hook_resid_pre", "standard", **weights, **biases)


@pytest.fixture(scope="module")
def results(tiny, tokens):
    source = tiny("llama")
    twin = ah.convert(source)
    found = ah.attribute(twin, tokens[:1], 5)
    return [
        found,
        found.graph(budget=5),
        found.graph(budget=5).influence(),
        found.through(_autoencoder(twin)),
        found.confirm(k=3),
        ah.attribute_pattern(twin, tokens[0], "L1.A2", (None, 3)),
        ah.attribute_pattern(twin, tokens[0], "L1.N7"),
        ah.verify(source, twin, tokens),
        ah.cost("gpt3-175b"),
        twin.points(),
        ah.weights.circuit(twin, "L2.N3", k=4),
        ah.weights.circuit(twin, "L2.A1", k=4),
        ah.weights.composition(twin, "neuron->Q", k=9),
        ah.corpus.head_scores(twin, length=8),
        ah.corpus.means(twin, tokens),
        ah.corpus.sweep(twin, list(tokens)),
        Circuit.of(found, 7),
    ]


def test_every_kind_of_result_is_here(results):
    known = {kind.__name__ for kind in Result.__subclasses__()} - {"Similarity"}  # see test_smollm's sentence encoder
    assert known == {type(result).__name__ for result in results}


def test_tables_values_and_files(results, tmp_path):
    for result in results:
        table, values = result.to_dataframe(), result.to_dict()
        assert isinstance(table, pd.DataFrame) and len(table)
        assert json.loads(json.dumps(values, allow_nan=False)) == values
        path = result.save(tmp_path / "result.json") if not isinstance(result, ah.corpus.Sweep) else None
        if path is not None and not isinstance(result, AttributionGraph):
            assert json.loads(path.read_text("utf-8")) == values
            assert len(pd.read_csv(result.save(tmp_path / "result.csv"))) == len(table)
            with pytest.raises(ah.AllHeadsError, match=r"ends in \.json, \.csv or \.parquet"):
                result.save(tmp_path / "result.pkl")


def test_tables_as_parquet(results, tmp_path):
    """As `datasets` reads them: with the types that the table has, and nothing beside the columns."""
    for result in results:
        if isinstance(result, AttributionGraph):
            continue
        table = result.to_dataframe()
        path = result.save(tmp_path / "result.parquet")
        assert list(pyarrow.parquet.read_schema(path).names) == list(table.columns)
        pd.testing.assert_frame_equal(pd.read_parquet(path), table, check_dtype=False)
        assert [file.name for file in tmp_path.iterdir()] == ["result.parquet"]


def test_parquet_without_pyarrow_is_refused_by_name(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ah.AllHeadsError, match=r"pyarrow, to write Parquet.*pip install 'allheads\[parquet\]'"):
        results[0].save(tmp_path / "result.parquet")
    assert not list(tmp_path.iterdir())


def test_they_show_themselves_in_a_few_lines(results):
    for result in results:
        shown = repr(result)
        assert shown.startswith(f"{type(result).__name__}(")
        assert len(shown.splitlines()) < 15
        assert max(map(len, shown.splitlines())) < 700
        assert "tensor(" not in shown
        assert result._repr_html_().startswith("<p><code>")


def test_strange_tokens_are_no_markup():
    class Found(Result):
        def facts(self):
            return {"label": "<b>\x1b[2J"}

        def to_dataframe(self):
            return pd.DataFrame({"token": ["<script>", "\x1b[2J"] * 6, "effect": [float("nan")] * 12})

    for shown in (repr(Found()), Found()._repr_html_()):
        assert "\x1b" not in shown
    assert "<script>" not in Found()._repr_html_() and "<b>" not in Found()._repr_html_()
    assert repr(Found()).endswith("... of 12 rows")
    assert Found().to_dict()["rows"][0]["effect"] is None
