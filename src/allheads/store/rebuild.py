"""A saved twin comes back: on its source, with the gates it had, through the checks of `ah.convert`.

1. ``twin.json`` and the checksums of all files.
2. The source: given, read again by name, or made from the tensors of a standalone folder.
3. Its MLPs are read and replaced by banks with the saved gates, which are not fitted again, and the twin is audited.
4. What it shares with the source is compared by SHA-256; what it had of its own is put in.
"""

from __future__ import annotations

import math
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.gates.gates import GateSum
from allheads.gates.serialization import named
from allheads.models.bridge import TransformerBridge
from allheads.models.mlps import MLP
from allheads.models.observe import evaluating
from allheads.store import tensors as files
from allheads.store.folder import check
from allheads.store.record import BankRecord, Record, read
from allheads.store.source import check_kind, check_tensors, rebuilt, reopened
from allheads.twin import convert
from allheads.twin.twin import TwinBridge

#: Factors are measured, and their last digits may differ from machine to machine.
SAME = 1e-9


def load_twin(
    folder: Path, dtype: torch.dtype | None, device: str | torch.device | None, source: TransformerBridge | None
) -> TwinBridge:
    """The twin in a folder: read and checked, rebuilt on its source, and given what it had of its own."""
    record = read(folder)
    check(folder, record)
    if dtype not in (None, record.source.dtype):
        raise AllHeadsError(
            f"the dtype of the saved twin, {record.source.dtype}", str(dtype), "Leave it out, or convert in that dtype."
        )
    if source is not None and device is not None:
        raise AllHeadsError("a device or a source", "both", "The twin is where its source is.")
    # As for a conversion: weights made in inference mode could never be probed with a gradient.
    with torch.inference_mode(False):
        stored = files.read(folder, record)
        if source is None:
            where = "cpu" if device is None else device
            source = rebuilt(folder, record, stored, where) if record.standalone else reopened(folder, record, where)
        check_kind(record, convert.checked(source))
        with evaluating(source):
            return _rebuild(record, source, stored)


def _rebuild(record: Record, source: TransformerBridge, stored: dict[str, Tensor]) -> TwinBridge:
    reading = convert.read(source)
    _check_locations(record, reading.mlps)
    gates = [_gates_to_check(mlp, bank, record) for mlp, bank in zip(reading.mlps, record.banks, strict=True)]
    domains = [bank.domain for bank in record.banks]
    twin = convert.assemble(reading, gates, domains, record.tolerance)
    for bank, saved in zip(twin.banks, record.banks, strict=True):
        bank.gates, bank.evaluation, bank.pattern_dtype = saved.gates, saved.evaluation, saved.pattern_dtype
        if saved.edited:
            with bank.edit():
                pass  # its own heads are put below
    check_tensors(record, twin, stored)
    files.put(twin, stored)
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
    return bank.gates if same else convert.gates_of(mlp, bank.domain, record.tolerance)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME)
