"""The source of a saved twin: read again, given, or made from what a standalone folder has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge, share
from allheads.models.from_config import differing, fill, network_from_config
from allheads.models.load import load
from allheads.models.origin import state
from allheads.models.read_mlps import read_mlps
from allheads.models.reading import explained
from allheads.store.record import Record
from allheads.store.tensors import digests, put
from allheads.twin.twin import TwinBridge

_CHANGED = "Give the source as it was, ah.load(folder, source=...), or save the twin again with standalone=True."


def reopened(folder: Path, record: Record, device: str | torch.device) -> TransformerBridge:
    """The source, by the name that `ah.load` was given."""
    if record.source.name is None:
        raise AllHeadsError(
            f"the source of the twin in {folder}, which was not loaded with ah.load",
            "none",
            "Give it: ah.load(folder, source=bridge). With standalone=True, ah.save needs no source.",
        )
    try:
        return load(record.source.name, dtype=record.source.dtype, device=device)
    except AllHeadsError as cause:
        raise AllHeadsError(
            f"the source of the twin in {folder}, {record.source.name}",
            f"none: expected {cause.expected}, got {cause.got}",
            "Bring it back, or give it: ah.load(folder, source=ah.load(...)).",
        ) from cause


def rebuilt(
    folder: Path, record: Record, tensors: Mapping[str, Tensor], device: str | torch.device
) -> TransformerBridge:
    """The source from its own tensors; where heads were edited, the MLP is any MLP, to be replaced by them."""
    source = record.source
    with explained("a device that this PyTorch can use", 'Try device="cpu".'):
        torch.empty(1, device=device)
    model = network_from_config(
        folder,
        device,
        network=source.network,
        architecture=source.architecture,
        model_name=source.model_name,
        kernels=source.kernels,
        dtype=source.dtype,
    )
    fill(model, tensors)
    put(model, tensors)
    # Heads are stored under their locations, so their tensors go into the MLPs as those are read.
    with torch.no_grad():
        for unit in read_mlps(model, share(model)):
            for mlp in unit.mlps:
                for name, tensor in mlp.tensors.items():
                    new = tensors.get(f"{mlp.location.prefix}{name}")
                    if new is not None and new.shape == tensor.shape:
                        tensor.detach().copy_(new)
    return model


def check_kind(record: Record, source: TransformerBridge) -> None:
    """Raise `AllHeadsError` if a source is of another architecture or configuration than the twin's."""
    saved = record.source
    if source.cfg.architecture != saved.architecture:
        raise AllHeadsError(f"a source of the twin's kind, {saved.architecture}", source.cfg.architecture, _CHANGED)
    if source.cfg.dtype != saved.dtype:
        raise AllHeadsError(
            f"a source in {saved.dtype}, as the twin's", str(source.cfg.dtype), "Load it in that dtype."
        )
    if differ := differing(vars(saved), source):
        raise AllHeadsError("a source configured like the twin's", f"another {', '.join(differ[:3])}", _CHANGED)


def check_tensors(record: Record, twin: TwinBridge, stored: Mapping[str, Tensor]) -> None:
    """Raise `AllHeadsError` if the twin would have other tensors than were saved, or not the same ones."""
    saved, present = record.source.sha256, state(twin)
    if missing := sorted({*saved, *stored} - {*present}):
        raise AllHeadsError("a source of the twin's shape", f"one without {_some(missing)}", _CHANGED)
    if extra := sorted({*twin.origin.state} & {*present} - {*saved, *stored}):
        raise AllHeadsError("a source of the twin's shape", f"one with {_some(extra)} beside it", _CHANGED)
    found = digests({name: present[name] for name in saved})
    if changed := [name for name in saved if found[name] != saved[name]]:
        raise AllHeadsError("the source as it was when the twin was saved", f"another {_some(changed)}", _CHANGED)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
