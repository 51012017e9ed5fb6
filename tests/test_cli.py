"""The command line on real files: one JSON object, one line for an error, honest exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from allheads.attribution.attribution_graph import AttributionGraph
from allheads.cli.main import app
from allheads.verification.report import Thresholds

KEYS = [
    "model",
    "n_layers",
    "n_attention_heads",
    "n_neurons",
    "n_neuron_heads",
    "bias_tokens",
    "seconds_load",
    "seconds_convert",
    "max_logit_error",
    "max_logit_error_closed",
    "mean_kl",
    "max_kl",
    "loss_source",
    "loss_twin",
    "top1_agreement",
    "noise_floor",
    "domain_violations",
    "passed",
]


def _run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_json_of_the_real_model(tmp_path):
    page = tmp_path / "report.html"
    result = _run("--json", "The twin gives the same logits.", "--report", page)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert list(figures) == KEYS
    assert figures["passed"] is True
    assert (figures["n_layers"], figures["n_attention_heads"]) == (30, 270)
    assert figures["n_neurons"] == 46_080
    assert figures["n_neuron_heads"] == 46_080 * len(figures["bias_tokens"])
    assert figures["domain_violations"] == 0
    assert result.stderr == ""
    assert page.stat().st_size > 1e6


@pytest.fixture
def _loaded(monkeypatch, smollm, smollm_twin):
    """The model that commands would load and convert is there already."""
    import allheads as ah

    monkeypatch.setattr(ah, "load", lambda name: smollm)
    monkeypatch.setattr(ah, "convert", lambda source: smollm_twin)


@pytest.mark.usefixtures("_loaded")
def test_a_failed_verification_is_exit_code_1(monkeypatch):
    import allheads as ah

    strict = Thresholds(max_logit_error=0.0, mean_kl=0.0)
    verify = ah.verify
    monkeypatch.setattr(ah, "verify", lambda *pair_and_texts: verify(*pair_and_texts).against(strict))
    result = _run("One short text.")
    assert result.exit_code == 1
    assert "NOT the same" in result.stdout
    assert "max_logit_error is" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "smollm2-135"], "smollm2-135m"),
        (["a", "--file", "b"], "a text or --file"),
        (["--file", "nowhere.txt"], "a readable UTF-8 text file"),
        (["--report", "nowhere/report.html"], "a path in a folder that exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    _refused(arguments, message)


@pytest.mark.usefixtures("_loaded")
def test_a_text_without_tokens_is_one_line_and_exit_code_2():
    _refused([" "], "the empty string")


def _refused(arguments, message):
    result = _run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("allheads: Expected ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "Expected enough memory, got too little."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes.\nTrace"), "9 bytes."),
        (RuntimeError("CUDA out of memory."), "CUDA out of memory"),
    ],
)
def test_a_lack_of_memory_is_one_line(monkeypatch, error, message):
    import allheads as ah

    def load(name):
        raise error

    monkeypatch.setattr(ah, "load", load)
    result = _run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("allheads: Expected enough memory")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    error = RuntimeError("a fault of ours")
    assert _run().exception is error


def test_foreign_text_is_shown_as_it_is(capsys):
    """Names and tokens are no markup, no pictures, and move no cursor."""
    from rich.table import Table

    from allheads.cli.console import results

    for strange in ("[INST] hello [/INST]", "[bold red]model", ":smile:", "[/]"):
        table = Table(title=strange)
        table.add_column(strange)
        table.add_row(strange)
        results().print(table)
        results().print(strange)
        assert capsys.readouterr().out.count(strange) == 4
    results().print("\x1b[2J \ud800 \u202e")
    assert capsys.readouterr().out == "\\x1b[2J \\ud800 \\u202e\n"


def test_strange_names_are_one_line():
    result = _run("--model", "no\x1b[2J\n/such/\udcff.gguf")
    assert result.exit_code == 2
    assert r"no\x1b[2J\n/such/\udcff.gguf" in result.stderr.replace("\\\\", "\\")
    assert result.stderr.count("\n") == 1


def test_a_report_shows_the_name_of_its_model(tiny, tokens):
    import allheads as ah

    source = tiny("gpt2")
    source.cfg.model_name = "[bold red]model"
    verdict = ah.verify(source, ah.convert(source), tokens)
    assert "[bold red]model: source and twin are the same" in str(verdict)


@pytest.mark.parametrize("tolerance", [1e150, 1e300, 1.7e308])
def test_tolerances_without_end(tolerance):
    """Their square is no number, and the thresholds are what they are for any large one."""
    assert Thresholds.default(torch.float32, tolerance) == Thresholds.default(torch.float32, 1e9)


def test_a_file_is_read_by_paragraphs(tmp_path, monkeypatch):
    from allheads.cli import conversion

    path = tmp_path / "text.txt"
    path.write_text("First paragraph.\n\nSecond one.\n", encoding="utf-8")
    assert conversion.texts_of(None, path) == ["First paragraph.", "Second one.\n"]
    assert conversion.texts_of("words", None) == ["words"]
    assert conversion.texts_of(None, None) is None


def _attribute(*arguments):
    return CliRunner().invoke(app, ["attribute", *arguments])


@pytest.mark.usefixtures("_loaded")
def test_attribute(tmp_path):
    prompt = "When Mary and John went to the store, John gave a drink to"
    result = _attribute(prompt, "--target", " Mary", "--versus", " John", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["total"] == pytest.approx(facts["target_value"], abs=1e-4)
    assert sum(row["embedding"] for row in facts["tokens"]) == pytest.approx(facts["total"], abs=1e-4)
    assert facts["top"][0]["label"] == "L23.A3"
    assert len(facts["top"]) == 12
    page = tmp_path / "page.html"
    shown = _attribute(prompt, "--target", " Mary", "--rule", "relp", "--top", "3", "--report", str(page)).stdout
    assert "60 parts" in page.read_text("utf-8")
    assert "Not complete" in shown and "' Mary' at position 13" in shown
    refused = _attribute(prompt, "--target", "antidisestablish")
    assert refused.exit_code == 2
    shown = _attribute("[INST] hello [/INST]", "--target", " Mary")
    assert shown.exit_code == 0
    assert "'INST'" in shown.stdout


@pytest.mark.usefixtures("_loaded")
def test_graph(tmp_path):
    prompt = "When Mary and John went to the store, John gave a drink to"
    arguments = ["graph", prompt, "--target", " Mary", "--versus", " John", "--budget", "20", "-o"]
    folder = tmp_path / "graphs"
    result = CliRunner().invoke(app, [*arguments, str(folder), "--format", "neuronpedia", "--prune", "0.9", "--json"])
    assert result.exit_code == 0, result.output
    facts, (listed,) = json.loads(result.stdout), json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert Path(facts["output"]) == folder / f"{listed['slug']}.json"
    read = AttributionGraph.load(facts["output"])
    assert 0 < len(read.parts) < 20 and facts["nodes"] == len(read.nodes)
    shown = CliRunner().invoke(app, [*arguments, str(tmp_path / "own.json")]).stdout
    assert "L23.A3" in shown and "20 parts" in shown
    assert len(AttributionGraph.load(tmp_path / "own.json").parts) == 20
