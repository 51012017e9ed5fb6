"""The command line on real files: one JSON object, one line for an error, honest exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

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
    result = _run("--json", "--text", "The twin gives the same logits.", "--report", page)
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


def test_a_failed_verification_is_exit_code_1(monkeypatch, smollm, smollm_twin):
    import allheads as ah

    monkeypatch.setattr(ah, "load", lambda name: smollm)
    monkeypatch.setattr(ah, "convert", lambda source: smollm_twin)
    strict = Thresholds(max_logit_error=0.0, mean_kl=0.0)
    verify = ah.verify
    monkeypatch.setattr(ah, "verify", lambda *pair_and_texts: verify(*pair_and_texts).against(strict))
    result = _run("--text", "One short text.")
    assert result.exit_code == 1
    assert "NOT the same" in result.stdout
    assert "max_logit_error is" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smollm2-135"], "smollm2-135m"),
        (["--text", "a", "--file", "b"], "one of --text and --file"),
        (["--file", "nowhere.txt"], "a readable UTF-8 text file"),
        (["--report", "nowhere/report.html"], "a report in an existing folder"),
        (["--text", " "], "the empty string"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    result = _run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("allheads: Expected ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_is_read_by_paragraphs(tmp_path, monkeypatch):
    from allheads.cli import conversion

    path = tmp_path / "text.txt"
    path.write_text("First paragraph.\n\nSecond one.\n", encoding="utf-8")
    assert conversion.texts_of(None, path) == ["First paragraph.", "Second one.\n"]
    assert conversion.texts_of("words", None) == ["words"]
    assert conversion.texts_of(None, None) is None


def _attribute(*arguments):
    return CliRunner().invoke(app, ["attribute", *arguments])


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
