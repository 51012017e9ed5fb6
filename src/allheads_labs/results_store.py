"""Finished units in the user's cache: a JSON file each, there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allheads.disk import write_whole
from allheads.errors import AllHeadsError
from allheads.models.cache import cache_root
from allheads_labs.lab import Lab, Result, Unit


def place(lab: Lab, unit: Unit) -> Path:
    """Where a unit's result is, or will be."""
    return cache_root() / "labs" / lab.name / f"{lab.fingerprint(unit)}.json"


def fetch(lab: Lab, unit: Unit) -> Result | None:
    """The result of a unit that is done. None if it is not, or if its file is damaged: then it is done again."""
    kept = read(place(lab, unit))
    try:
        return None if kept is None else Result(kept["setting"], kept["seed"], kept["found"], kept["seconds"])
    except (KeyError, TypeError):
        return None


def keep(lab: Lab, unit: Unit, result: Result) -> Result:
    """Keep a result; returns it as it will be read. Raises `AllHeadsError` where the cache cannot be written."""
    return Result(**write(place(lab, unit), result.to_dict()))


def read(path: Path) -> dict[str, Any] | None:
    """What is kept at a path; None if nothing is, or if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Keep plain values, whole or not at all; returns them as they will be read.

    Raises `AllHeadsError` where the cache cannot be written.
    """
    text = json.dumps(found, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except (OSError, AllHeadsError) as error:
        why = error.got if isinstance(error, AllHeadsError) else str(error)
        remedy = "Make room, or name another folder in the environment variable ALLHEADS_CACHE."
        raise AllHeadsError("a cache folder that can be written", why, remedy) from error
    return json.loads(text)
