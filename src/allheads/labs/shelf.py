"""Finished units in the user's cache: a JSON file each, there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from allheads.errors import AllHeadsError
from allheads.files import write_whole
from allheads.labs.lab import Lab, Result, Unit
from allheads.models.cache import cache_root


def place(lab: Lab, unit: Unit) -> Path:
    """Where a unit's result is, or will be."""
    return cache_root() / "labs" / lab.name / f"{lab.fingerprint(unit)}.json"


def fetch(lab: Lab, unit: Unit) -> Result | None:
    """The result of a unit that is done. None if it is not, or if its file is damaged: then it is done again."""
    try:
        kept = json.loads(place(lab, unit).read_text(encoding="utf-8"))
        return Result(kept["setting"], kept["seed"], kept["found"], kept["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(lab: Lab, unit: Unit, result: Result) -> Result:
    """Write a result beside its place and move it there; returns it as it will be read.

    Raises `AllHeadsError` where the cache cannot be written.
    """
    target, text = place(lab, unit), json.dumps(result.to_dict(), allow_nan=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    except (OSError, AllHeadsError) as error:
        why = error.got if isinstance(error, AllHeadsError) else str(error)
        remedy = "Make room, or name another folder in the environment variable ALLHEADS_CACHE."
        raise AllHeadsError("a cache folder that can be written", why, remedy) from error
    return Result(**json.loads(text))
