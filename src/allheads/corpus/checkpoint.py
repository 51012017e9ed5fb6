"""A sweep as one safetensors file, which is there whole or not at all, and is read only as it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from allheads.corpus.running_statistics import BEFORE, FREQUENT, RunningStatistics
from allheads.disk import named_path, tensor_digest, write_tensors
from allheads.errors import AllHeadsError
from allheads.heads.evaluate import Evaluation
from allheads.untrusted import fitted, parsed, read_tensors, sealed, unsealed

#: The one entry of the file's metadata: more would come in a random order, and equal sweeps are equal files.
KEY, VERSION = "allheads.sweep", 6
_NAMES = {*(field.name for field in fields(RunningStatistics)), "groups"}


@dataclass(frozen=True)
class Settings:
    """All that a sweep depends on, and what its rows are: ``stems`` of neurons with how many there are, ``heads``."""

    model: str
    weights: str
    evaluation: list[Evaluation]
    context: PositiveInt
    batch: PositiveInt
    every: PositiveInt
    corpus: str
    texts: NonNegativeInt
    windows: NonNegativeInt
    parts: NonNegativeInt
    stems: list[tuple[str, Annotated[NonNegativeInt, Field(le=2**40)]]]
    heads: list[str]


def write(path: str | Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], done: int) -> Path:
    """Write the sweep so far: whoever is killed here leaves the old file."""
    target = named_path(path).resolve()
    dense = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    digests = {name: tensor_digest(name, tensor) for name, tensor in dense.items()}
    about = {"version": VERSION, "done": done, "settings": settings, "sha256": digests}
    write_tensors(target, dense, {KEY: json.dumps(sealed(about))})
    return target


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Tensors, settings, and how much is done. Raises `AllHeadsError` for anything but a sweep of this version."""
    try:
        metadata, tensors = read_tensors(named_path(path))
        about = parsed(metadata.get(KEY, "null"), dict[str, Any])
        if about.get("version") != VERSION:
            raise AllHeadsError(f"a sweep of version {VERSION}", f"{about.get('version')}", "Sweep again.")
        about = unsealed(about)
        if about.get("sha256") != {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}:
            raise ValueError("tensors without their checksums")
        settings = fitted(about.get("settings"), Settings)
        if not 0 <= (done := fitted(about.get("done"), int)) <= settings.parts:
            raise ValueError(f"{done} parts done, of {settings.parts}")
        _check(tensors, settings)
    except AllHeadsError:
        raise
    except (OSError, ValueError) as cause:
        raise AllHeadsError(
            "a file that ah.corpus.sweep has written", f"{path} ({cause})", "Check the path, or sweep again."
        ) from cause
    return tensors, vars(settings), done


def _check(tensors: Mapping[str, Tensor], settings: Settings) -> None:
    """Raise `ValueError` if tensors have not the names, dtypes and shapes that the settings tell of."""
    if tensors.keys() != _NAMES:
        raise ValueError(f"other tensors than expected, such as {min(tensors.keys() ^ _NAMES)!r}")
    widths, groups = [width for _, width in settings.stems], tensors["groups"]
    if len(tensors["open"].flatten()) != sum(widths):
        raise ValueError(f"statistics of other than {sum(widths)} neurons")
    expected = RunningStatistics.empty(widths, len(settings.heads), "meta").tensors()
    for name, tensor in expected.items():
        if (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{name} of shape {tuple(tensors[name].shape)} in {tensors[name].dtype}")
    if bool(((tensors["example_texts"] >= 0) & (tensors["example_tokens"][..., BEFORE] < 0)).any()):
        raise ValueError("examples without their tokens")
    if groups.ndim != 1 or groups.dtype != torch.int64 or bool(((groups < 0) | (groups >= 2 * FREQUENT)).any()):
        raise ValueError("other groups of tokens")
