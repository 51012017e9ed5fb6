"""``twin.json``: everything about a twin except for its tensors, with a checksum over itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import FiniteFloat, NonNegativeInt, PlainValidator, StringConstraints, ValidationInfo

from allheads.errors import AllHeadsError
from allheads.gates import serialization
from allheads.gates.gates import GateSum
from allheads.heads.evaluate import Evaluation
from allheads.models.reading import first_line
from allheads.twin.domain import Domain
from allheads.untrusted import fitted, read_json, sealed, unsealed

#: What a saved twin is known by. The version rises whenever an older reader would misread a folder: 1 had no revision.
FILE, FORMAT, VERSION = "twin.json", "allheads.twin", 2

#: What tells people about it.
CARD = "README.md"


def _gates(number: Any, known: ValidationInfo[list[GateSum]]) -> GateSum:
    """Gates stand once in the file, and banks have their numbers."""
    return known.context[fitted(number, NonNegativeInt)]


def _domain(row: Any) -> Domain:
    entries = fitted(row, dict[str, Any])
    return fitted({**entries, "limit": math.inf if entries.get("limit") == "inf" else entries.get("limit")}, Domain)


def _dtype(name: Any) -> torch.dtype:
    dtype = getattr(torch, fitted(name, str), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is no dtype")
    return dtype


Dtype = Annotated[torch.dtype, PlainValidator(_dtype)]
#: Names of what is in transformers; one with a slash would be fetched from elsewhere.
Kernel = Literal["attn_implementation", "experts_implementation"]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class BankRecord:
    """One bank: its location in the bridge, its gates and domain, how it is evaluated, and if its heads were edited."""

    location: str
    gates: Annotated[GateSum, PlainValidator(_gates)]
    domain: Annotated[Domain, PlainValidator(_domain)]
    evaluation: Evaluation
    pattern_dtype: Dtype | None
    edited: bool


@dataclass(frozen=True)
class SourceRecord:
    """The source: as `ah.load` was given it, what it is, and what tells it from another.

    ``network`` is the class of its network, ``config`` its configuration, ``kernels`` how it computes attention and
    experts; ``sha256`` has a digest for every tensor that the twin does not bring along; ``revision`` is the commit of
    a source on the Hub.
    """

    name: str | None
    dtype: Dtype
    architecture: str
    network: str
    model_name: str
    kernels: dict[Kernel, Annotated[str, StringConstraints(pattern=r"^\w+$")] | None]
    prepends_bos: bool
    config: dict[str, Any] | None
    sha256: dict[str, Digest]
    revision: Annotated[str, StringConstraints(pattern=r"^\w+$")] | None = None


class FileRecord(NamedTuple):
    """Size and SHA-256 of a file."""

    bytes: NonNegativeInt
    sha256: Digest


@dataclass(frozen=True)
class Record:
    """A saved twin; ``files`` has every other file in its folder, except for the card, which people may edit."""

    standalone: bool
    tolerance: FiniteFloat
    source: SourceRecord
    banks: list[BankRecord]
    files: dict[str, FileRecord]


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
        "files": {name: file._asdict() for name, file in record.files.items()},
    }
    text = json.dumps(sealed(content), indent=1, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record:
    """Read ``twin.json``. Raises `AllHeadsError`: it is missing, damaged, of a newer version, or something else."""
    try:
        content = read_json(folder / FILE, dict[str, Any])
    except FileNotFoundError as cause:
        raise AllHeadsError(
            f"a folder that ah.save has written, with {FILE}", f"{folder} without it", "Check the path."
        ) from cause
    except (OSError, ValueError) as cause:
        raise damaged(folder, f"{FILE} that cannot be read ({cause})") from cause
    if content.get("format") != FORMAT:
        raise AllHeadsError(f"a twin in {folder}", f"a {FILE} of something else", "Check the path.")
    if not isinstance(content.get("version"), int) or content["version"] > VERSION:
        raise AllHeadsError(
            f"a twin saved in format {VERSION} or before",
            f"format {content.get('version')!r} in {folder}, made with {content.get('made_with')}",
            "Update allheads.",
        )
    try:
        return _record(unsealed(content))
    except AllHeadsError:
        raise
    except Exception as cause:  # what is no gate fails in many ways
        raise damaged(folder, f"{FILE} with other entries ({first_line(cause)})") from cause


def damaged(folder: Path, what: str) -> AllHeadsError:
    """The refusal of a folder that is not as it was written."""
    return AllHeadsError(f"a twin as it was saved in {folder}", what, "It is damaged or was changed: save it again.")


def _record(content: dict[str, Any]) -> Record:
    kinds = [serialization.from_json(row) for row in fitted(content["gates"], list[dict[str, Any]])]
    return fitted({field.name: content[field.name] for field in fields(Record)}, Record, context=kinds)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
