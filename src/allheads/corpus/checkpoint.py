"""A sweep as one safetensors file, which is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from allheads.disk import write_tensors
from allheads.errors import AllHeadsError

#: The one entry of the file's metadata: more would come in a random order, and equal sweeps are equal files.
KEY, VERSION = "allheads.sweep", 2


def write(path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], done: int) -> Path:
    """Write the sweep so far: whoever is killed here leaves the old file."""
    target = path.expanduser().resolve()
    about = json.dumps({"version": VERSION, "done": done, "settings": settings})
    write_tensors(target, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {KEY: about})
    return target


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Tensors, settings, and how much is done. Raises `AllHeadsError` for anything but a sweep of this version."""
    try:
        with safe_open(path.expanduser(), "pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            if about["version"] != VERSION:
                raise AllHeadsError(f"a sweep of version {VERSION}", f"{about['version']}", "Sweep again.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as cause:
        raise AllHeadsError(
            "a file that ah.corpus.sweep has written", f"{path} ({cause})", "Check the path."
        ) from cause
    return tensors, about["settings"], about["done"]
