"""verify: run source and twin side by side, and hold every layer against its certified bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge, share
from allheads.models.compat import called
from allheads.models.experts import rows_of
from allheads.models.mlps import ReplacedMLP
from allheads.models.observe import Activations, Inputs, output_kind, run_bridge, watching
from allheads.models.read_mlps import read_mlps
from allheads.twin.twin import TwinBridge, require_twin
from allheads.verification.inputs import Runs, check_pair, input_runs
from allheads.verification.layers import LayerProof, prove_layer
from allheads.verification.logits import LogitGap, hidden_gap, largest_gap, logit_gap, noise_floor, token_losses
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
    evaluated = partial(twin.evaluated, evaluation, pattern_dtype)
    # Of each run: what the MLPs of the source read, and how far the twin is apart there, at the end and in its losses.
    seen, accumulated, gaps, closed_gaps, losses = zip(
        *(_compared(source, twin, units, run, evaluated) for run in runs), strict=True
    )
    kl = torch.cat([gap.kl for gap in gaps])
    loss_source, loss_twin = torch.cat(losses, 1).mean(1).tolist()
    return Report(
        model=str(source.cfg.model_name),
        texts=len(runs),
        tokens=sum(run["input"].numel() for run in runs if "input" in run),
        dtype=_name(source.cfg.dtype),
        evaluation=evaluation,
        pattern_dtype=_name(pattern_dtype or torch.promote_types(source.cfg.dtype, torch.float32)),
        tolerance=twin.tolerance,
        output=output_kind(source),
        max_logit_error=max(gap.largest for gap in gaps),
        max_logit_error_closed=max(gap.largest for gap in closed_gaps),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        mean_kl_closed=float(torch.cat([gap.kl for gap in closed_gaps]).mean()),
        loss_source=loss_source,
        loss_twin=loss_twin,
        top1_agreement=float(torch.cat([gap.agree for gap in gaps]).double().mean()),
        noise_floor=noise_floor(source, runs[0]),
        thresholds=Thresholds.default(source.cfg.dtype, twin.tolerance),
        layers=_prove_layers(twin, units, seen, accumulated),
    )


def _compared(
    source: TransformerBridge,
    twin: TwinBridge,
    units: list[ReplacedMLP],
    inputs: Inputs,
    evaluated: Callable[[], AbstractContextManager[TwinBridge]],
) -> tuple[Activations, list[float], LogitGap, LogitGap, Float[Tensor, "2 pos_1"]]:
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
    causal = ids is not None and out.shape[:-1] == ids.shape and source.adapter.supports_causal_loss
    losses = torch.stack([token_losses(each, ids) if causal else each.new_zeros(0) for each in (out, twin_out)])
    accumulated = [_accumulated(unit, mine, theirs) for unit in units]
    return mine, accumulated, gap(out, twin_out), gap(out, closed_out), losses


def _accumulated(unit: ReplacedMLP, mine: Activations, theirs: Activations) -> float:
    """How far what the MLPs of the two networks wrote is apart."""
    pairs = zip(mine.outputs.get(unit.writes, []), theirs.outputs.get(unit.writes, []), strict=True)
    return max((largest_gap(a, b) for a, b in pairs), default=0.0)


@contextmanager
def _every_bank_as_often(twin: TwinBridge, units: list[ReplacedMLP], mine: Activations) -> Iterator[None]:
    """Refuse a run that goes around a bank: what it computes there is not what was proved."""
    calls: Counter[int] = Counter()
    handles = [
        called(twin.original_model, unit.reads).heads.register_forward_hook(
            lambda *_, number=number: calls.update([number])
        )
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


def _prove_layers(
    twin: TwinBridge, units: list[ReplacedMLP], seen: Sequence[Activations], accumulated: Sequence[list[float]]
) -> list[LayerProof]:
    proofs, layers = [], iter(twin.layers)
    for unit, *apart in zip(units, *accumulated, strict=True):
        for mlp in unit.mlps:
            rows = [read for run in seen for read in rows_of(unit, mlp, run)]
            x = torch.cat(rows) if rows else torch.zeros(0, len(mlp.tensors["W_in"]))
            layer = next(layers)
            proofs.append(prove_layer(mlp, layer.bank, x, layer.domain, max(apart)))
    return proofs


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
