"""Finished units in the user's cache: a JSON file each, there whole or not at all, and read only if it is undamaged.

A file is ``{"sha256": "<of the result's bytes>", "result": <the result>}``. What is damaged, too large, nested too
deeply or the result of another unit is done again, and standard error says so.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import typer

from allheads import AllHeadsError
from allheads.disk import cache_root, digest, write_whole
from allheads_labs.kit.lab import Lab, Result, Unit

#: Bytes of a file, and levels of its JSON, beyond which no lab wrote it.
LARGEST, DEEPEST = 2**26, 32


def path_of(lab: Lab, unit: Unit) -> Path:
    """Where a unit's result is, or will be."""
    return cache_root() / "labs" / lab.name / f"{lab.fingerprint(unit)}.json"


def fetch(lab: Lab, unit: Unit) -> Result | None:
    """The result of a unit that is done. None if it is not, or if its file is damaged: then standard error says so."""
    path = path_of(lab, unit)
    try:
        return _read(path, unit)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        typer.echo(f"allheads: {path} is damaged ({error}): its unit is done again.", err=True)
        return None


def keep(lab: Lab, unit: Unit, result: Result) -> Result:
    """Write a result, whole or not at all; returns it as it will be read.

    Raises `AllHeadsError` where the cache cannot be written.
    """
    path, text = path_of(lab, unit), json.dumps(result.to_dict(), allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, with_checksum(text))
    except (OSError, AllHeadsError) as error:
        why = error.got if isinstance(error, AllHeadsError) else str(error)
        remedy = "Make room, or name another folder in the environment variable ALLHEADS_CACHE."
        raise AllHeadsError("a cache folder that can be written", why, remedy) from error
    return Result(**json.loads(text))


def with_checksum(result: str) -> bytes:
    """The bytes of a file.

    >>> with_checksum("{}")[:20], with_checksum("{}")[-15:]
    (b'{"sha256": "44136fa3', b', "result": {}}')
    """
    return f'{{"sha256": "{digest(result)}", "result": {result}}}'.encode()


def _read(path: Path, unit: Unit) -> Result:
    """Raises `ValueError` or `RecursionError` for a file that is not the undamaged result of this unit."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    content = path.read_bytes()
    # All before the result is as long as before an empty one.
    text = content[len(with_checksum("")) - 1 : -1].decode()
    if content != with_checksum(text):
        raise ValueError("not what its checksum says")
    kept = json.loads(text, parse_constant=_refuse)
    if _depth(kept) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels")
    about = {"setting": json.loads(json.dumps(unit.setting)), "seed": unit.seed}
    if not isinstance(kept, dict) or set(kept) != {*about, "found", "seconds"}:
        raise ValueError("not a result")
    if any(kept[name] != value for name, value in about.items()):
        raise ValueError("the result of another unit")
    findings, seconds = kept["found"], kept["seconds"]
    if not isinstance(findings, dict) or not isinstance(seconds, float) or not 0 <= seconds < math.inf:
        raise ValueError("findings and seconds of another form")
    return Result(**kept)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [child for children in inner if isinstance(children, list) for child in children]
    return depth


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} for a number")
