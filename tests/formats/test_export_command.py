"""``allheads export``, as it is used after a sweep; and one head of SmolLM2."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import allheads as ah
from allheads.attribution.neuronpedia.numbering import cantor
from allheads.cli import exporting
from allheads.cli.main import app

TEXT = "When Mary and John went to the store, John gave a drink to Mary. The store was in Paris.\n"
LABELS = ("--label", "L2.N1010", "--label", "L0.N3")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(TEXT * 4, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def twin(example_names):
    return example_names["twin"]


@pytest.fixture
def run(twin, monkeypatch):
    monkeypatch.setattr(exporting, "load_twin", lambda *named: twin)
    return lambda *arguments: CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def swept(twin, corpus, tmp_path_factory):
    found = ah.corpus.sweep(twin, ah.corpus.TextFiles([corpus], True), ah.corpus.SweepSettings(context=32))
    return found.save(tmp_path_factory.mktemp("sweep") / "sweep.safetensors")


def test_features(run, twin, swept, tmp_path):
    out = tmp_path / "features"
    done = run("features", swept, "--out", out, *LABELS, "--json")
    assert json.loads(done.stdout) == {"model": "smollm2-135m", "out": str(out), "files": 2}
    content = json.loads((out / f"{cantor(2, 1010)}.json").read_text(encoding="utf-8"))
    circuit = ah.weights.circuit(twin, "L2.N1010")
    assert content["top_logits"] == [token.text for token in circuit.promotes]
    assert content["bottom_logits"] == [token.text for token in circuit.suppresses]
    example = content["examples_quantiles"][0]["examples"][0]
    assert "".join(example["tokens"]) in TEXT
    assert {path.name for path in out.iterdir()} == {f"{cantor(2, 1010)}.json", f"{cantor(0, 3)}.json"}


def test_mistakes_are_one_line_and_leave_nothing(run, swept, corpus, tmp_path):
    broken, there = tmp_path / "broken.safetensors", tmp_path / "there"
    broken.write_bytes(swept.read_bytes()[:-9])
    there.mkdir()
    (there / "mine").write_text("something", encoding="utf-8")
    for arguments, message in (
        (("features", broken, "--out", tmp_path / "new"), "a file that ah.corpus.sweep has written"),
        (("features", swept, "--out", there), "the name of a new folder"),
        (("features", swept, "--out", tmp_path / "new", "--label", "L9.N0"), "a whole neuron, up to L3.N1023"),
        (("heads", corpus, "--out", there), "the name of a new folder"),
        (("heads", corpus, "--out", tmp_path / "new", *LABELS, "--label", "L0.A0"), "heads, or neurons"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"allheads: Expected {message}"), refused.stderr
        assert refused.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"broken.safetensors", "there"}
    assert [path.name for path in there.iterdir()] == ["mine"]


def test_heads_and_neurons(run, corpus, tmp_path):
    done = run("heads", corpus, "--lines", "--context", 32, "--out", tmp_path / "heads")
    assert done.stdout == f"{tmp_path / 'heads'}: 24 files of heads or neurons\n"
    config = json.loads((tmp_path / "heads" / "config.json").read_text(encoding="utf-8"))
    assert config["dataset_name"] == "corpus.txt"
    assert config["pipeline_config"]["n_sequences"] == 4
    done = run("heads", corpus, "--out", tmp_path / "neurons", *LABELS, "--json")
    assert json.loads(done.stdout)["files"] == 2
    content = json.loads((tmp_path / "neurons" / "heads" / "L2H1010.json").read_text(encoding="utf-8"))
    assert content["sequences"][0]["tokens"][:2] == ["When", " Mary"]


def test_a_head_of_smollm_that_looks_back(smollm_twin, tmp_path):
    """One that docs/finding.md lists."""
    folder = ah.formats.write_headvis(smollm_twin, [TEXT], tmp_path / "new", ["L16.A0"])
    (row,) = json.loads((folder / "scatter_data.json").read_text(encoding="utf-8"))
    assert row["prev_token_score"] > 0.5
    assert 1 < row["qk_distance"] < 4
