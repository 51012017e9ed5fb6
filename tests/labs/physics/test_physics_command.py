"""The lab: quick on a small model, resumed, written into a document."""

from __future__ import annotations

import json
import shutil

import pytest
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from allheads_labs.commands.physics import physics
from allheads_labs.physics import parts, probing
from allheads_labs.physics.report import tables


@pytest.fixture(scope="module")
def run(worded, texts, tmp_path_factory):
    app = typer.Typer()
    app.command()(physics)
    cache = {"ALLHEADS_CACHE": str(tmp_path_factory.mktemp("cache"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "documentation", lambda: texts)
        yield lambda *words: CliRunner().invoke(app, ["--quick", "--model", str(worded), *words], env=cache)


@pytest.fixture(scope="module")
def report(run):
    done = run("--seeds", "2", "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_it_measures_every_part(report):
    found = report["parts"]
    assert list(found) == list(parts.PARTS)
    assert report["lab"] == "physics"
    assert max(found["gradients"]["random"]) < 1e-10
    assert max(*found["gradients"]["heads"], *found["gradients"]["neurons"]) < 1e-4
    assert found["gradients"]["count"] == [12, 3 * 4 * 2]
    memory = found["memory"]
    assert (len(memory["shares"]), len(memory["shares"][0]), memory["expected"]) == (3, 4, 8 / 32)
    assert len(memory["random"]) == len(memory["other_layer"]) == 2
    assert 0.15 < sum(map(sum, memory["shares"])) / 12 < 0.35  # random weights are as random heads are
    assert len(found["paths"]["prompts"]) == 2
    assert found["paths"]["prompts"][0]["energy"].keys() == {"-2", "-1", "1", "2"}
    assert found["segments"]["chance"] == 8 / 32
    assert found["segments"]["by_distance"].keys() == {"0", "1", "2"}
    assert set(found["probes"]) == {"identity", "token before", "position", "part of speech"}


def test_what_is_done_is_not_done_again(run, report, monkeypatch):
    def refuse(*args):
        raise RuntimeError("done again")

    for name in parts.PARTS:
        monkeypatch.setitem(parts.PARTS, name, refuse)
    again = run("--seeds", "2", "--json")
    assert json.loads(again.stdout) == report
    assert isinstance(run("--seeds", "1").exception, RuntimeError)


def test_other_weights_in_the_same_folder_are_another_model(run, worded, tmp_path, monkeypatch):
    def shares():
        done = run("--seeds", "1", "--json", "--model", str(folder))
        return json.loads(done.stdout)["parts"]["memory"]["shares"]

    monkeypatch.setattr(parts, "PARTS", {"memory": parts.memory_shares})
    monkeypatch.setattr("allheads_labs.physics.lab.PARTS", parts.PARTS)
    folder = shutil.copytree(worded, tmp_path / "model")
    before = shares()
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file(weights | {name: weights[name].flip(1).contiguous()}, folder / "model.safetensors", {"format": "pt"})
    after = shares()
    assert before[0] == after[0] and before[1] != after[1]
    shutil.copytree(worded, folder, dirs_exist_ok=True)
    assert shares() == before


def test_tables_go_into_a_document(run, report, tmp_path):
    path = tmp_path / "physics.md"
    names = list(tables(report["parts"]))
    path.write_text("".join(f"<!-- {name} --><!-- /{name} -->\n" for name in names), encoding="utf-8")
    done = run("--seeds", "2", "--write", str(path))
    assert done.exit_code == 0, done.output
    text = path.read_text(encoding="utf-8")
    assert "| all heads |" in text
    assert len(text.splitlines()) > 40
    assert all(table in text for table in tables(report["parts"]).values())
    assert "physics:memory" in run("--seeds", "2").stdout


def test_no_seeds_are_refused(run):
    done = run("--seeds", "0")
    assert done.exit_code == 2
    assert "at least one seed" in done.stderr


def test_the_figure_is_a_path_for_every_token(run, report, tmp_path):
    page = tmp_path / "paths.html"
    done = run("--seeds", "2", "--json", "--figure", str(page))
    assert done.exit_code == 0, done.output
    assert page.read_text().count('"scatter3d"') >= 16


def test_wrong_paths_are_known_before_the_work_begins(run, tmp_path, monkeypatch):
    monkeypatch.setattr("allheads.load", lambda *_: pytest.fail("a model was loaded"))
    for option, path, message in (
        ("--figure", tmp_path / "nowhere" / "paths.html", "a path in a folder that exists"),
        ("--write", tmp_path / "none.md", "a document with markers for tables"),
    ):
        done = run(option, str(path))
        assert done.exit_code == 2
        assert message in done.stderr
