"""``allheads export`` with SmolLM2, as it is used after a sweep."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import allheads as ah
from allheads.cli import exporting
from allheads.cli.main import app
from allheads.formats.feature_ids import cantor

TEXT = "When Mary and John went to the store, John gave a drink to Mary. The store was in Paris.\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(TEXT * 4, encoding="utf-8")
    return path


@pytest.fixture
def run(smollm_twin, monkeypatch):
    monkeypatch.setattr(exporting, "load_twin", lambda *named: smollm_twin)
    return lambda *arguments: CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_features(run, smollm_twin, corpus, tmp_path):
    sweep = ah.corpus.sweep(smollm_twin, ah.corpus.TextFiles([corpus], True), ah.corpus.SweepSettings(context=32))
    sweep.save(tmp_path / "sweep.safetensors")
    out = tmp_path / "features"
    chosen = ("--label", "L26.N1262", "--label", "L0.N3")
    done = run("features", tmp_path / "sweep.safetensors", "--out", out, *chosen, "--json")
    assert json.loads(done.stdout) == {"model": "smollm2-135m", "out": str(out), "files": 2}
    content = json.loads((out / f"{cantor(26, 1262)}.json").read_text(encoding="utf-8"))
    circuit = ah.weights.circuit(smollm_twin, "L26.N1262")
    assert content["top_logits"] == [token.text for token in circuit.promotes]
    assert content["bottom_logits"] == [token.text for token in circuit.suppresses]
    assert content["examples_quantiles"][0]["examples"][0]["tokens"][0] == "When"
    again = run("features", tmp_path / "sweep.safetensors", "--out", out)
    assert again.exit_code == 2
    assert again.stderr.startswith("allheads: Expected the name of a new folder")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tmp_path / "sweep.safetensors").read_bytes()[:-9])
    refused = run("features", broken, "--out", tmp_path / "other")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("allheads: Expected a file that ah.corpus.sweep has written")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_heads_and_neurons(run, corpus, tmp_path):
    done = run("heads", corpus, "--lines", "--context", 32, "--out", tmp_path / "heads")
    assert done.stdout == f"{tmp_path / 'heads'}: 270 files of heads or neurons\n"
    rows = json.loads((tmp_path / "heads" / "scatter_data.json").read_text(encoding="utf-8"))
    # A head of docs/finding.md that looks at the token before.
    assert next(row for row in rows if (row["layer"], row["head"]) == (16, 0))["prev_token_score"] > 0.5
    done = run("heads", corpus, "--lines", "--label", "L26.N1262", "--out", tmp_path / "neurons", "--json")
    assert json.loads(done.stdout)["files"] == 1
    content = json.loads((tmp_path / "neurons" / "heads" / "L26H1262.json").read_text(encoding="utf-8"))
    assert content["sequences"][0]["tokens"][:2] == ["When", " Mary"]
