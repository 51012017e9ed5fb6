"""verify: run source and twin side by side, and hold every layer against its certified bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge, share
from allheads.models.compat import called, network_module
from allheads.models.experts import rows_of
from allheads.models.mlps import Unit
from allheads.models.observe import Inputs, Seen, output_kind, run_bridge, watching
from allheads.models.read_mlps import read_mlps
from allheads.twin.twin import TwinBridge, require_twin
from allheads.verification.inputs import Runs, check_pair, input_runs
from allheads.verification.layers import LayerProof, prove_layer
from allheads.verification.logits import LogitGap, hidden_gap, logit_gap, noise_floor, token_losses
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

    Raises `AllHeadsError` if the two do not belong together, for texts the model cannot read, for patterns below
    float32, or if a bank of the twin does not run.
    """
    if evaluation not in ("slots", "attention"):
        raise AllHeadsError("slots or attention, which compute every head", repr(evaluation), "Leave it out.")
    require_twin(twin)
    check_pair(source, twin)
    runs = input_runs(source, texts)
    units = read_mlps(source, share(source))
    seen = [_run(source, twin, units, run, evaluation, pattern_dtype) for run in runs]
    kl = torch.cat([run.gap.kl for run in seen])
    losses = [torch.cat([getattr(run, name) for run in seen]) for name in ("losses_source", "losses_twin")]
    return Report(
        model=str(source.cfg.model_name),
        texts=len(runs),
        tokens=sum(run["input"].numel() for run in runs if "input" in run),
        dtype=_name(source.cfg.dtype),
        evaluation=evaluation,
        pattern_dtype=_name(pattern_dtype or torch.promote_types(source.cfg.dtype, torch.float32)),
        tolerance=twin.tolerance,
        output=output_kind(source),
        max_logit_error=max(run.gap.largest for run in seen),
        max_logit_error_closed=max(run.gap_closed.largest for run in seen),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        mean_kl_closed=float(torch.cat([run.gap_closed.kl for run in seen]).mean()),
        loss_source=_mean(losses[0]),
        loss_twin=_mean(losses[1]),
        top1_agreement=float(torch.cat([run.gap.agree for run in seen]).double().mean()),
        noise_floor=noise_floor(source, runs[0]),
        thresholds=Thresholds.default(source.cfg.dtype, twin.tolerance),
        layers=_prove_layers(twin, units, seen),
    )


@dataclass
class _Run:
    """One run through both models: what is kept of it."""

    source: Seen
    accumulated: dict[str, float]
    gap: LogitGap
    gap_closed: LogitGap
    losses_source: Tensor
    losses_twin: Tensor


def _run(
    source: TransformerBridge,
    twin: TwinBridge,
    units: list[Unit],
    inputs: Inputs,
    evaluation: Literal["slots", "attention"],
    pattern_dtype: torch.dtype | None,
) -> _Run:
    paths = {path for unit in units for path in (unit.reads, unit.writes)}
    with torch.no_grad():
        with watching(source.original_model, paths) as mine:
            out = run_bridge(source, inputs)
        with (
            twin.evaluated(evaluation, pattern_dtype),
            watching(twin.original_model, paths) as theirs,
            _every_bank_as_often(twin, units, mine),
        ):
            twin_out = run_bridge(twin, inputs)
        with twin.evaluated("closed"):
            closed_out = run_bridge(twin, inputs)
    accumulated = {unit.writes: max(map(_largest, _differences(unit, mine, theirs)), default=0.0) for unit in units}
    gap = logit_gap if output_kind(source) == "logits" else hidden_gap
    ids = inputs.get("input")
    causal = ids is not None and out.shape[:-1] == ids.shape and source.adapter.supports_causal_loss
    losses = [token_losses(each, ids) if causal else each.new_zeros(0) for each in (out, twin_out)]
    return _Run(mine, accumulated, gap(out, twin_out), gap(out, closed_out), *losses)


def _differences(unit: Unit, mine: Seen, theirs: Seen) -> list[Tensor]:
    pairs = zip(mine.outputs.get(unit.writes, []), theirs.outputs.get(unit.writes, []), strict=True)
    return [a - b for a, b in pairs]


@contextmanager
def _every_bank_as_often(twin: TwinBridge, units: list[Unit], mine: Seen) -> Iterator[None]:
    """Refuse a run that goes around a bank: what it computes there is not what was proved."""
    calls = dict.fromkeys(range(len(units)), 0)

    def counter(number: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            calls[number] += 1

        return count

    handles = [
        network_module(called(twin.original_model, unit.reads)).register_forward_hook(counter(number))
        for number, unit in enumerate(units)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    other = [
        unit.site.location.stem
        for number, unit in enumerate(units)
        if calls[number] != len(mine.inputs.get(unit.reads, []))
    ]
    if other:
        raise AllHeadsError(
            "a twin that runs every bank as often as the source its MLP",
            f"one that goes around {', '.join(other)}",
            "Convert again.",
        )


def _prove_layers(twin: TwinBridge, units: list[Unit], seen: list[_Run]) -> list[LayerProof]:
    proofs, layers = [], iter(twin.layers)
    for unit in units:
        accumulated = max(run.accumulated[unit.writes] for run in seen)
        for mlp in unit.mlps:
            rows = [read for run in seen for read in rows_of(unit, mlp, run.source)]
            x = torch.cat(rows) if rows else torch.zeros(0, len(mlp.tensors["W_in"]))
            layer = next(layers)
            proofs.append(prove_layer(mlp, layer.bank, x, layer.domain, accumulated))
    return proofs


def _largest(difference: Tensor) -> float:
    largest = float(difference.abs().max())
    return largest if math.isfinite(largest) else math.inf


def _mean(losses: Tensor) -> float:
    return float(losses.mean()) if len(losses) else math.nan


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
