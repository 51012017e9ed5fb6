"""A sweep as one safetensors file, which is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from allheads.errors import AllHeadsError

#: The one entry of the file's metadata: more would come in a random order, and equal sweeps are equal files.
KEY, VERSION = "allheads.sweep", 1


def write(path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], done: int) -> Path:
    """Write beside the file and rename: whoever is killed here leaves the old file."""
    target = path.expanduser().resolve()
    scratch = target.with_name(f".{target.name}.unfinished")
    about = json.dumps({"version": VERSION, "done": done, "settings": settings})
    try:
        scratch.touch()
        usual = scratch.stat().st_mode  # safetensors lets nobody else read what it writes
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, scratch, {KEY: about})
        scratch.chmod(usual)
        scratch.replace(target)
    except (OSError, SafetensorError) as cause:
        raise AllHeadsError(f"a place to write {target} to", str(cause), "Make room, or name another file.") from cause
    finally:
        scratch.unlink(missing_ok=True)
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
