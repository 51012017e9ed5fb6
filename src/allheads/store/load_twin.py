"""A saved twin comes back: on its source, with the gates it had, through the checks of `ah.convert`.

1. ``twin.json`` and the checksums of all files.
2. The source: given, loaded again by name, or made from the tensors of a standalone folder.
3. Its MLPs are read and replaced by banks with the saved gates, which are not fitted again, and the twin is audited.
4. What it shares with the source is compared by SHA-256; tensors that were stored are put in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.gates.gates import GateSum
from allheads.gates.serialization import named
from allheads.models import pretrained
from allheads.models.bridge import TransformerBridge
from allheads.models.descriptions import bridge_like, differing, fill
from allheads.models.mlps import MLP
from allheads.models.observe import evaluating
from allheads.models.origin import state
from allheads.models.reading import explained, require_plausible
from allheads.store.folder import check
from allheads.store.record import BankRecord, Record, read_record
from allheads.store.tensors import digests, read_tensor_files, set_tensors
from allheads.twin import convert
from allheads.twin.twin import TwinBridge
from allheads.untrusted import read_json

#: Factors are measured, and their last digits may differ from machine to machine.
SAME = 1e-9

_CHANGED = "Give the source as it was, ah.load(folder, source=...), or save the twin again with standalone=True."


def revive(
    folder: Path, dtype: torch.dtype | None, device: str | torch.device | None, source: TransformerBridge | None
) -> TwinBridge:
    """The twin in a folder: read and checked, rebuilt on its source, and given the tensors that were stored."""
    record = read_record(folder)
    check(folder, record)
    if dtype not in (None, record.source.dtype):
        raise AllHeadsError(
            f"the dtype of the saved twin, {record.source.dtype}", str(dtype), "Leave it out, or convert in that dtype."
        )
    if source is not None and device is not None:
        raise AllHeadsError("a device or a source", "both", "The twin is where its source is.")
    # As for a conversion: weights made in inference mode could never be probed with a gradient.
    with torch.inference_mode(False):
        stored = read_tensor_files(folder, record)
        if source is None:
            where = "cpu" if device is None else device
            if record.standalone:
                source = _source_from_tensors(folder, record, stored, where)
            else:
                source = _source_by_name(folder, record, where)
        _check_kind(record, convert.checked(source))
        with evaluating(source):
            return _twin_on(record, source, stored)


def _twin_on(record: Record, source: TransformerBridge, stored: dict[str, Tensor]) -> TwinBridge:
    reading = convert.read(source)
    _check_locations(record, reading.mlps)
    gates = [_gates_to_check(mlp, bank, record) for mlp, bank in zip(reading.mlps, record.banks, strict=True)]
    domains = [bank.domain for bank in record.banks]
    twin = convert.assemble(reading, gates, domains, record.tolerance)
    for bank, saved in zip(twin.banks, record.banks, strict=True):
        bank.gates, bank.evaluation, bank.pattern_dtype = saved.gates, saved.evaluation, saved.pattern_dtype
        if saved.edited:
            with bank.edit():
                pass  # the stored heads are put in below
    _check_tensors(record, twin, stored)
    set_tensors(twin, stored)
    twin.cfg.default_prepend_bos = record.source.prepends_bos
    return twin


def _check_locations(record: Record, mlps: list[MLP]) -> None:
    for saved, found in zip_longest((bank.location for bank in record.banks), (mlp.location.name for mlp in mlps)):
        if saved != found:
            expected = f"a source with an MLP at {saved}" if saved else f"a source with {len(record.banks)} MLPs"
            raise AllHeadsError(expected, f"one with {found or 'none'} there", "Give the source of the saved twin.")


def _gates_to_check(mlp: MLP, bank: BankRecord, record: Record) -> GateSum:
    """The saved gates, or, where somebody has put others, what they replaced: checks compare with the source."""
    (saved, saved_factors), (name, factors) = named(bank.gates.activation), named(mlp.computed)
    numbers, measured = list(chain(*saved_factors)), list(chain(*factors))
    same = saved == name and len(numbers) == len(measured) and all(map(_close, numbers, measured))
    return bank.gates if same else convert.scaled_gates(mlp, convert.gates_of(mlp, bank.domain, record.tolerance))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME)


def _source_by_name(folder: Path, record: Record, device: str | torch.device) -> TransformerBridge:
    """The source, by the name that `ah.load` was given, on this machine: a file does not decide where we look."""
    if record.source.name is None:
        raise AllHeadsError(
            f"the source of the twin in {folder}, which was not loaded with ah.load",
            "none",
            "Give it: ah.load(folder, source=bridge). With standalone=True, ah.save needs no source.",
        )
    try:
        return pretrained.load(
            record.source.name,
            dtype=record.source.dtype,
            device=device,
            network=False,
            revision=record.source.revision,
        )
    except AllHeadsError as cause:
        raise AllHeadsError(
            f"the source of the twin in {folder}, {record.source.name}",
            f"none: expected {cause.expected}, got {cause.got}",
            f"Bring it back, or give it: ah.load(folder, source=ah.load({record.source.name!r})).",
        ) from cause


def _source_from_tensors(
    folder: Path, record: Record, tensors: Mapping[str, Tensor], device: str | torch.device
) -> TransformerBridge:
    """The source from the stored tensors; where heads were edited, the MLP is any MLP, to be replaced by them."""
    source = record.source
    with explained("a device that this PyTorch can use", 'Try device="cpu".'):
        torch.empty(1, device=device)
    with explained(f"a configuration in {folder}", "Save the twin again."):
        size = sum(tensor.nbytes for tensor in tensors.values())
        require_plausible(read_json(folder / "config.json", dict[str, Any]), len(tensors), size)
    model = bridge_like(vars(source), folder, source.dtype, device)
    fill(model, tensors)
    set_tensors(model, tensors)
    return model


def _check_kind(record: Record, source: TransformerBridge) -> None:
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


def _check_tensors(record: Record, twin: TwinBridge, stored: Mapping[str, Tensor]) -> None:
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
