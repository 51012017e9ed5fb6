"""Folders that are costly to make, kept in the user's cache and never half-made or silently damaged.

1. A folder is built beside its final place, and renamed when complete (`allheads.disk.replaced_folder`): whoever
   finds the final name finds a finished folder. Interrupted builds are removed, at once or by a later run.
2. ``manifest.json`` holds the size and CRC-32 of every file. It is checked at each use, and a folder that
   does not match is built anew. (CRC-32 finds accidents, which is its purpose here; 540 MB take 0.2 s.)
3. Processes that build the same folder at once do the work twice, and the first to finish wins.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

from allheads.disk import cache_root, recover, replaced_folder
from allheads.errors import AllHeadsError
from allheads.untrusted import read_json

MANIFEST = "manifest.json"
_CHUNK = 1 << 22

logger = logging.getLogger(__name__)


def cached_folder(key: str, build: Callable[[Path], None]) -> Path:
    """The folder called ``key`` in the cache; ``build(folder)`` fills it where it is missing or damaged.

    Args:
        key: the folder's name, which must change whenever its content would.
        build: writes all files, directly into the empty folder it is given.

    Raises:
        AllHeadsError: the cache cannot be written. Errors of ``build`` that are not OSErrors pass through.
    """
    root = cache_root()
    target = root / key
    recover(root)
    if target.exists():
        if _is_intact(target):
            return target
        logger.warning("The cached copy %s is damaged; making it again.", key)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with replaced_folder(target, stays=_is_intact) as scratch:
            build(scratch)
            _write_manifest(scratch)
    except OSError as cause:
        raise AllHeadsError(
            "a writable cache folder with room for an unpacked model",
            f"{type(cause).__name__}: {cause}",
            "Make room, or name another folder in the environment variable ALLHEADS_CACHE.",
        ) from cause
    return target


def _write_manifest(folder: Path) -> None:
    files = {path.name: [path.stat().st_size, _crc32(path)] for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def _is_intact(folder: Path) -> bool:
    try:
        files = read_json(folder / MANIFEST, dict[str, dict[str, tuple[int, int]]])["files"]
        # Sizes first: they are free, and a truncated file need not be read.
        return all((folder / name).stat().st_size == size for name, (size, _) in files.items()) and all(
            _crc32(folder / name) == crc for name, (_, crc) in files.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
