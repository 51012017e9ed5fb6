"""verify: run source and twin side by side, hold every layer against its certified bound, and compare all weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge, processed, splits_projections
from allheads.models.compat import weights_processed
from allheads.models.differences import differences
from allheads.models.experts import rows_of
from allheads.models.mlps import ReplacedMLP
from allheads.models.observe import (
    Activations,
    Inputs,
    evaluating,
    network_inputs,
    output_kind,
    run_bridge,
    watching,
)
from allheads.twin.convert import Reading, read
from allheads.twin.domain import input_domains
from allheads.twin.twin import TwinBridge, require_twin
from allheads.verification.banks import bank_faults, check_banks, hooked
from allheads.verification.inputs import Runs, check_pair, input_runs
from allheads.verification.layers import LayerProof, prove_layer
from allheads.verification.logits import (
    LogitGap,
    closed_limit,
    hidden_gap,
    largest_gap,
    logit_gap,
    noise_floor,
    token_losses,
)
from allheads.verification.reach import unreached
from allheads.verification.report import Report, Thresholds


def verify(
    source: TransformerBridge,
    twin: TransformerBridge,
    texts: Runs,
    *,
    evaluation: Literal["slots", "attention"] = "slots",
    pattern_dtype: torch.dtype | None = None,
) -> Report:
    """Is the twin the model? Every text is run through both; nothing is sampled or skipped.

    Models that read something else than one text are given their arguments by name, as the bridge takes them:
    ``{"input": ids, "decoder_input": ids}``, ``{"pixel_values": images}``, with masks if there are any. The figures
    come from ``evaluation``, which computes every head; `closed`, which is nearly the source's own arithmetic, is a
    second column. Layers are compared in float64 on the source's own inputs, each against its certified bound.
    Thresholds are the default ones of the dtype and the tolerance: `Report.against` takes others.

    A text reaches few weights, so everything is compared by value as well: the heads of each bank with those that the
    source's MLP makes, every other parameter, buffer and setting with the source's. Bounds and thresholds come from
    certificates that are looked up by the coefficients of the gates; domains are computed from the source again.

    Raises `AllHeadsError` if the two do not belong together, for texts the model cannot read, for patterns below
    float32, or if the network does not call the banks of the twin's layers.

    >>> import allheads as ah
    >>> report = ah.verify(source, twin, "The quick brown fox jumps over the lazy dog.")
    >>> report.passed, report.domain_violations, len(report.layers)
    (True, 0, 4)
    """
    if evaluation not in ("slots", "attention"):
        raise AllHeadsError("slots or attention, which compute every head", repr(evaluation), "Leave it out.")
    source = _as_processed(source, require_twin(twin))
    check_pair(source, twin)
    runs = input_runs(source, texts)
    with evaluating(source):
        reading = read(source)
    units = reading.replaced
    check_banks(twin, units)
    evaluated = partial(twin.evaluated, evaluation, pattern_dtype)
    # Of each run: what the MLPs of the source read, and how far the twin is apart there, at the end and in its losses.
    seen, accumulated, gaps, closed_gaps, losses, largest = zip(
        *(_compared(source, twin, units, run, evaluated) for run in runs), strict=True
    )
    layers = _prove_layers(twin, reading, seen, accumulated)
    apart = [*differences(source, twin, units), *hooked(twin, units)]
    noise = noise_floor(reading.body, network_inputs(source, runs[0]))
    certified = max((layer.certified for layer in layers), default=0.0)
    closed = closed_limit(noise, max(largest), len(layers), source.cfg.dtype)
    limits = _limits(layers, certified, closed, source.cfg.dtype)
    kl = torch.cat([gap.kl for gap in gaps])
    loss_source, loss_twin = torch.cat(losses, 1).mean(1).tolist()
    return Report(
        model=str(source.cfg.model_name),
        texts=len(runs),
        tokens=sum(run["input"].numel() for run in runs if "input" in run),
        dtype=_name(source.cfg.dtype),
        evaluation=evaluation,
        pattern_dtype=_name(pattern_dtype or torch.promote_types(source.cfg.dtype, torch.float32)),
        tolerance=certified,
        output=output_kind(source),
        max_logit_error=max(gap.largest for gap in gaps),
        max_logit_error_closed=max(gap.largest for gap in closed_gaps),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        mean_kl_closed=float(torch.cat([gap.kl for gap in closed_gaps]).mean()),
        loss_source=loss_source,
        loss_twin=loss_twin,
        top1_agreement=float(torch.cat([gap.agree for gap in gaps]).double().mean()),
        noise_floor=noise,
        thresholds=limits,
        layers=layers,
        differences=apart,
        unreached=unreached(source, runs, layers, not apart),
    )


def _limits(layers: Sequence[LayerProof], certified: float, closed: float, dtype: torch.dtype) -> Thresholds:
    """The thresholds of figures: those of the dtype and the certificates, and, for `closed`, of rounding."""
    limits = Thresholds.default(dtype, certified)
    if any(layer.edited for layer in layers):  # edited heads cannot be collapsed
        return limits
    return replace(limits, max_logit_error_closed=min(closed, limits.max_logit_error))


def _as_processed(source: TransformerBridge, twin: TwinBridge) -> TransformerBridge:
    """The source with its weights folded and centred as the twin's are."""
    if twin.processing is not None and splits_projections(source):
        raise AllHeadsError(
            "weights that are not processed, in a family whose gate and value are one projection",
            "processed ones",
            "Verify the twin before enable_compatibility_mode, or use no_processing=True.",
        )
    if twin.processing is not None and not weights_processed(source):
        return processed(source, **twin.processing)
    if weights_processed(source) and twin.processing is None:
        raise AllHeadsError(
            "a source and a twin whose weights are processed alike",
            "a processed source",
            "Call twin.enable_compatibility_mode(...) as on the source, or load the source again.",
        )
    return source


def _compared(
    source: TransformerBridge,
    twin: TwinBridge,
    units: list[ReplacedMLP],
    inputs: Inputs,
    evaluated: Callable[[], AbstractContextManager[TwinBridge]],
) -> tuple[Activations, list[float], LogitGap, LogitGap, Float[Tensor, "2 pos_1"], float]:
    """One run through both models: see `verify`."""
    paths = {path for unit in units for path in (unit.reads, unit.writes)}
    with torch.no_grad():
        with watching(source.original_model, paths) as mine:
            out = run_bridge(source, inputs)
        with (
            evaluated(),
            watching(twin.original_model, paths) as theirs,
            _every_bank_as_often(twin, units, mine),
        ):
            twin_out = run_bridge(twin, inputs)
        with twin.evaluated("closed"):
            closed_out = run_bridge(twin, inputs)
    gap = logit_gap if output_kind(source) == "logits" else hidden_gap
    ids = inputs.get("input")
    words = output_kind(source) == "logits" and source.adapter.supports_causal_loss
    causal = words and ids is not None and out.shape[:-1] == ids.shape
    losses = torch.stack([token_losses(each, ids) if causal else each.new_zeros(0) for each in (out, twin_out)])
    accumulated = [_accumulated(unit, mine, theirs) for unit in units]
    largest = float(torch.nan_to_num(out, nan=0.0, posinf=0.0, neginf=0.0).abs().max())
    return mine, accumulated, gap(out, twin_out), gap(out, closed_out), losses, largest


def _accumulated(unit: ReplacedMLP, mine: Activations, theirs: Activations) -> float:
    """How far what the MLPs of the two networks wrote is apart."""
    pairs = zip(mine.outputs.get(unit.writes, []), theirs.outputs.get(unit.writes, []), strict=True)
    return max((largest_gap(a, b) for a, b in pairs), default=0.0)


@contextmanager
def _every_bank_as_often(twin: TwinBridge, units: list[ReplacedMLP], mine: Activations) -> Iterator[None]:
    """Refuse a run in which a bank of the twin's layers does not run as often as the source's MLP did."""
    calls: Counter[int] = Counter()
    handles = [
        layer.bank.register_forward_hook(lambda *_, number=number: calls.update([number]))
        for number, layer in enumerate(twin.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    expected = [(len(mine.inputs.get(unit.reads, [])), unit.site.experts) for unit in units for _ in unit.mlps]
    other = [
        layer.location.stem
        for number, (layer, (count, expert)) in enumerate(zip(twin.layers, expected, strict=True))
        # An expert runs only where a token is routed to it.
        if not expert and calls[number] != count
    ]
    if other:
        raise AllHeadsError(
            "a twin that runs every bank as often as the source its MLP",
            f"one that goes around {', '.join(other)}",
            "Convert again.",
        )


def _prove_layers(
    twin: TwinBridge, reading: Reading, seen: Sequence[Activations], accumulated: Sequence[list[float]]
) -> list[LayerProof]:
    proofs, layers = [], iter(twin.layers)
    domains = input_domains(reading.body, reading.replaced, reading.activations)
    for unit, of_unit, *apart in zip(reading.replaced, domains, *accumulated, strict=True):
        for mlp, domain in zip(unit.mlps, of_unit, strict=True):
            rows = [read for run in seen for read in rows_of(unit, mlp, run)]
            x = torch.cat(rows) if rows else torch.zeros(0, len(mlp.tensors["W_in"]))
            layer = next(layers)
            proof = prove_layer(mlp, layer, x, domain, max(apart))
            faults = bank_faults(mlp, layer, domain, twin.tolerance)
            proofs.append(replace(proof, faults=tuple(faults), passed=proof.passed and not faults))
    return proofs


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
