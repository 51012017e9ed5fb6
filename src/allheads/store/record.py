"""``twin.json``: everything about a twin except for its tensors, with a checksum over itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from allheads.disk import digest
from allheads.errors import AllHeadsError
from allheads.gates import serialization
from allheads.gates.gates import GateSum
from allheads.heads.evaluate import Evaluation
from allheads.twin.domain import Domain

#: What a saved twin is known by. The version rises whenever an older reader would misread a folder.
FILE, FORMAT, VERSION = "twin.json", "allheads.twin", 1


@dataclass(frozen=True)
class BankRecord:
    """One bank: its location in the bridge, its gates and domain, how it is evaluated, and if its heads were edited."""

    location: str
    gates: GateSum
    domain: Domain
    evaluation: Evaluation
    pattern_dtype: torch.dtype | None
    edited: bool


@dataclass(frozen=True)
class SourceRecord:
    """The source: as `ah.load` was given it, what it is, and what tells it from another.

    ``network`` is the class of its network, ``config`` its configuration, ``kernels`` how it computes attention and
    experts; ``sha256`` has a digest for every tensor that the twin does not bring along.
    """

    name: str | None
    dtype: torch.dtype
    architecture: str
    network: str
    model_name: str
    kernels: dict[str, str | None]
    prepends_bos: bool
    config: dict[str, Any] | None
    sha256: dict[str, str]


@dataclass(frozen=True)
class Record:
    """A saved twin; ``files`` has size and SHA-256 of every other file in its folder."""

    standalone: bool
    tolerance: float
    source: SourceRecord
    banks: list[BankRecord]
    files: dict[str, tuple[int, str]]


def write_record(record: Record, folder: Path) -> None:
    """Write ``twin.json``, in which equal gates stand once."""
    kinds = list(dict.fromkeys(bank.gates for bank in record.banks))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    packages = ("allheads", "torch", "transformers", "transformer-lens")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "made_with": {name: version(name) for name in packages},
        "standalone": record.standalone,
        "tolerance": record.tolerance,
        "source": vars(record.source) | {"dtype": _name(record.source.dtype)},
        "gates": [serialization.to_json(kind) for kind in kinds],
        "banks": [
            vars(bank)
            | {
                "gates": numbers[bank.gates],
                "domain": {"limit": serialization.number(bank.domain.limit), "by_theorem": bank.domain.by_theorem},
                "pattern_dtype": bank.pattern_dtype and _name(bank.pattern_dtype),
            }
            for bank in record.banks
        ],
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in record.files.items()},
    }
    text = json.dumps(content | {"checksum": _checksum(content)}, indent=1, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record:
    """Read ``twin.json``. Raises `AllHeadsError`: it is missing, damaged, of a newer version, or something else."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise AllHeadsError(
            f"a folder that ah.save has written, with {FILE}", f"{folder} without it", "Check the path."
        ) from cause
    except (OSError, ValueError) as cause:
        raise damaged(folder, f"{FILE} that cannot be read ({type(cause).__name__})") from cause
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise AllHeadsError(f"a twin in {folder}", f"a {FILE} of something else", "Check the path.")
    if not isinstance(content.get("version"), int) or content["version"] > VERSION:
        raise AllHeadsError(
            f"a twin saved in format {VERSION} or before",
            f"format {content.get('version')!r} in {folder}, made with {content.get('made_with')}",
            "Update allheads.",
        )
    if content.pop("checksum", None) != _checksum(content):
        raise damaged(folder, f"{FILE} without its checksum")
    try:
        return _record(content)
    except AllHeadsError:
        raise
    except Exception as cause:
        raise damaged(folder, f"{FILE} with other entries ({type(cause).__name__}: {cause})") from cause


def damaged(folder: Path, what: str) -> AllHeadsError:
    """The refusal of a folder that is not as it was written."""
    return AllHeadsError(f"a twin as it was saved in {folder}", what, "It is damaged or was changed: save it again.")


def _record(content: dict[str, Any]) -> Record:
    kinds = [serialization.from_json(row) for row in content["gates"]]
    banks = [
        BankRecord(
            location=row["location"],
            gates=kinds[row["gates"]],
            domain=Domain(float(row["domain"]["limit"]), row["domain"]["by_theorem"]),
            evaluation=row["evaluation"],
            pattern_dtype=row["pattern_dtype"] and _dtype(row["pattern_dtype"]),
            edited=row["edited"],
        )
        for row in content["banks"]
    ]
    source = SourceRecord(**(content["source"] | {"dtype": _dtype(content["source"]["dtype"])}))
    files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    return Record(content["standalone"], content["tolerance"], source, banks, files)


def _checksum(content: dict[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype
