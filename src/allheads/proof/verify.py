"""verify: run source and twin side by side, and hold every layer against its certified bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from allheads.errors import AllHeadsError
from allheads.models.bridge import TwinBridge, share
from allheads.models.mlps import read_mlps
from allheads.proof.inputs import Texts, check_pair, token_rows
from allheads.proof.layers import LayerProof, prove_layer
from allheads.proof.logits import LogitGap, logit_gap, noise_floor, token_losses
from allheads.proof.report import Report, Thresholds


def verify(
    source: TransformerBridge,
    twin: TransformerBridge,
    texts_or_tokens: Texts,
    *,
    evaluation: Literal["slots", "attention"] = "slots",
    pattern_dtype: torch.dtype | None = None,
    thresholds: Thresholds | None = None,
) -> Report:
    """Is the twin the model? Every text is run through both; nothing is sampled or skipped.

    The figures come from ``evaluation``, which computes every head; `closed`, which is nearly the source's own
    arithmetic, is a second column. Layers are compared in float64 on the source's own inputs, each against
    its certified bound.

    Raises `AllHeadsError` if the two do not belong together, for texts the model cannot read, for patterns below
    float32, or if a bank of the twin does not run.
    """
    if evaluation not in ("slots", "attention"):
        raise AllHeadsError("slots or attention, which compute every head", repr(evaluation), "Leave it out.")
    if not isinstance(twin, TwinBridge):
        raise AllHeadsError("an attention-only twin", type(twin).__name__, "Make one with ah.convert(source).")
    check_pair(source, twin)
    rows = token_rows(source, texts_or_tokens)
    seen = [_run(source, twin, row, evaluation, pattern_dtype) for row in rows]
    kl = torch.cat([run.gap.kl for run in seen])
    losses = [torch.cat([getattr(run, name) for run in seen]) for name in ("losses_source", "losses_twin")]
    return Report(
        model=str(source.cfg.model_name),
        texts=len(rows),
        tokens=sum(row.shape[1] for row in rows),
        dtype=_name(source.cfg.dtype),
        evaluation=evaluation,
        pattern_dtype=_name(pattern_dtype or torch.promote_types(source.cfg.dtype, torch.float32)),
        tolerance=twin.tolerance,
        max_logit_error=max(run.gap.largest for run in seen),
        max_logit_error_closed=max(run.gap_closed.largest for run in seen),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        mean_kl_closed=float(torch.cat([run.gap_closed.kl for run in seen]).mean()),
        loss_source=_mean(losses[0]),
        loss_twin=_mean(losses[1]),
        top1_agreement=float(torch.cat([run.gap.agree for run in seen]).double().mean()),
        noise_floor=noise_floor(source, rows[0]),
        thresholds=thresholds or Thresholds.default(source.cfg.dtype, twin.tolerance),
        layers=_prove_layers(source, twin, seen),
    )


class _Run:
    """One text through both models: what is kept of it."""

    def __init__(self, source_cache: dict[str, Tensor], accumulated: list[float]) -> None:
        self.inputs = [source_cache[name].flatten(0, -2) for name in source_cache if name.endswith("mlp.hook_in")]
        self.accumulated = accumulated
        self.gap: LogitGap
        self.gap_closed: LogitGap
        self.losses_source: Tensor
        self.losses_twin: Tensor


def _run(
    source: TransformerBridge,
    twin: TwinBridge,
    row: Tensor,
    evaluation: Literal["slots", "attention"],
    pattern_dtype: torch.dtype | None,
) -> _Run:
    layers = range(len(source.blocks))
    inputs = [f"blocks.{layer}.mlp.hook_in" for layer in layers]
    outputs = [f"blocks.{layer}.mlp.hook_out" for layer in layers]
    with torch.no_grad():
        logits, cache = source.run_with_cache(row, names_filter=inputs + outputs, return_cache_object=False)
        with twin.evaluated(evaluation, pattern_dtype), _every_bank_once(twin):
            twin_logits, twin_cache = twin.run_with_cache(row, names_filter=outputs, return_cache_object=False)
        with twin.evaluated("closed"):
            closed_logits = twin(row)
    accumulated = [_largest(twin_cache[name] - cache[name]) for name in outputs]
    run = _Run(cache, accumulated)
    run.gap, run.gap_closed = logit_gap(logits, twin_logits), logit_gap(logits, closed_logits)
    run.losses_source, run.losses_twin = token_losses(logits, row), token_losses(twin_logits, row)
    return run


@contextmanager
def _every_bank_once(twin: TwinBridge) -> Iterator[None]:
    """Refuse a run that goes around a bank: what it computes there is not what was proved."""
    calls = [0] * len(twin.banks)

    def counter(layer: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            calls[layer] += 1

        return count

    handles = [bank.register_forward_hook(counter(layer)) for layer, bank in enumerate(twin.banks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    skipped = [layer for layer, count in enumerate(calls) if count != 1]
    if skipped:
        raise AllHeadsError("a twin that runs every bank once", f"layers {skipped} otherwise", "Convert again.")


def _prove_layers(source: TransformerBridge, twin: TwinBridge, seen: list[_Run]) -> list[LayerProof]:
    mlps = read_mlps(source, share(source))
    return [
        prove_layer(
            mlp,
            twin.banks[mlp.layer],
            torch.cat([run.inputs[mlp.layer] for run in seen]),
            twin.domains[mlp.layer],
            max(run.accumulated[mlp.layer] for run in seen),
        )
        for mlp in mlps
    ]


def _largest(difference: Tensor) -> float:
    largest = float(difference.abs().max())
    return largest if math.isfinite(largest) else math.inf


def _mean(losses: Tensor) -> float:
    return float(losses.mean()) if len(losses) else math.nan


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
