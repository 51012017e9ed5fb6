"""Finished units in the user's cache: a JSON file each, there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from allheads import AllHeadsError
from allheads.disk import cache_root, write_whole
from allheads_labs.kit.lab import Lab, Result, Unit


def path_of(lab: Lab, unit: Unit) -> Path:
    """Where a unit's result is, or will be."""
    return cache_root() / "labs" / lab.name / f"{lab.fingerprint(unit)}.json"


def fetch(lab: Lab, unit: Unit) -> Result | None:
    """The result of a unit that is done. None if it is not, or if its file is damaged: then it is done again."""
    try:
        kept = json.loads(path_of(lab, unit).read_text(encoding="utf-8"))
        return Result(kept["setting"], kept["seed"], kept["found"], kept["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(lab: Lab, unit: Unit, result: Result) -> Result:
    """Write a result, whole or not at all; returns it as it will be read.

    Raises `AllHeadsError` where the cache cannot be written.
    """
    path, text = path_of(lab, unit), json.dumps(result.to_dict(), allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except (OSError, AllHeadsError) as error:
        why = error.got if isinstance(error, AllHeadsError) else str(error)
        remedy = "Make room, or name another folder in the environment variable ALLHEADS_CACHE."
        raise AllHeadsError("a cache folder that can be written", why, remedy) from error
    return Result(**json.loads(text))
