"""``allheads convert``: a model becomes its twin, and the two are compared."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import allheads as ah
from allheads.cli.before_loading import check_model, check_text
from allheads.cli.console import AsJson, DeviceOption, DtypeOption, ModelOption, load_model, results, step
from allheads.disk import checked_path
from allheads.errors import AllHeadsError

if TYPE_CHECKING:
    from allheads.twin.twin import TwinBridge
    from allheads.verification.report import Report


# More than five arguments, because typer makes an option of each.
def convert(
    text: Annotated[str | None, typer.Argument(help="Verify on this text; four samples unless said.")] = None,
    model: ModelOption = "smollm2-135m",
    file: Annotated[Path | None, typer.Option(help="Verify on the paragraphs of this text file.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Certified error of the scalar activation.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Convert a model, verify its twin, and say whether they are the same. Exit code 1 if they are not."""
    texts = texts_of(text, file)
    if tolerance is not None and not tolerance > 0:
        raise AllHeadsError("a positive tolerance", str(tolerance), "Leave it out for the default.")
    if report is not None:
        checked_path(report)
    check_model(model, device, dtype)
    verdict = _convert((model, device, dtype), texts, tolerance, report, as_json)
    raise typer.Exit(0 if verdict.passed else 1)


def _convert(
    named: tuple[str, str | None, str | None],
    texts: list[str] | None,
    tolerance: float | None,
    report: Path | None,
    as_json: bool,
) -> Report:
    with step("Importing torch, transformers and TransformerLens"):
        from allheads.verification.samples import sample_texts

        _ = ah.load, ah.convert, ah.verify
    texts = texts or sample_texts()
    started = time.perf_counter()
    source = load_model(*named)
    loaded = time.perf_counter()
    with step("Turning every MLP neuron into attention heads"):
        twin = ah.convert(source) if tolerance is None else ah.convert(source, tolerance=tolerance)
    converted = time.perf_counter()
    with step(f"Running both on {len(texts)} texts and proving every layer"):
        verdict = ah.verify(source, twin, texts)
    if report is not None:
        with step(f"Writing {report}"):
            from allheads.plots.report_page import write_report

            write_report(twin, verdict, source.to_tokens(texts[0]), report)
    facts = _facts(named[0], twin, loaded - started, converted - loaded)
    if as_json:
        figures = verdict.to_dict()
        typer.echo(json.dumps(facts | {name: figures[name] for name in _FIGURES}))
    else:
        _print(facts, verdict, report)
    return verdict


_FIGURES = (
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
)


def _facts(model: str, twin: TwinBridge, load: float, convert: float) -> dict[str, Any]:
    """Counts; ``bias_tokens`` is per head of a neuron, the largest over layers where they differ."""
    banks = twin.banks
    return {
        "model": model,
        "n_layers": len(banks),
        "n_attention_heads": len(banks) * twin.cfg.n_heads,
        "n_neurons": sum(bank.d_mlp for bank in banks),
        "n_neuron_heads": sum(bank.d_mlp * bank.gates.heads for bank in banks),
        "bias_tokens": list(max(bank.gates.bias_tokens for bank in banks)),
        "seconds_load": round(load, 2),
        "seconds_convert": round(convert, 2),
    }


def _print(facts: dict[str, Any], verdict: Report, report: Path | None) -> None:
    console = results()
    console.print(
        f"{facts['n_neurons']:,} neurons of {facts['n_layers']} layers are now {facts['n_neuron_heads']:,} heads "
        f"(bias tokens per head: {', '.join(map(str, facts['bias_tokens']))}), "
        f"beside {facts['n_attention_heads']} ordinary ones. "
        f"Loaded in {facts['seconds_load']} s, converted in {facts['seconds_convert']} s."
    )
    console.print(verdict)
    if report is not None:
        console.print(f"Report: {report}")


def texts_of(text: str | None, file: Path | None) -> list[str] | None:
    """The texts to verify on: one, the paragraphs of a file, or None for the samples."""
    if text is not None and file is not None:
        raise AllHeadsError("a text or --file", "both", "Leave one out.")
    if text is not None:
        check_text(text)
        return [text]
    if file is None:
        return None
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AllHeadsError("a readable UTF-8 text file", f"{file} ({error})", "Check the path.") from error
    paragraphs = [part for part in content.split("\n\n") if part.strip()]
    return paragraphs or [content]
