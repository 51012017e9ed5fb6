"""Folders that are costly to make, kept in the user's cache and never half-made or silently damaged.

1. A folder is built under a temporary name beside its final one, and renamed when complete: whoever finds
   the final name finds a finished folder. Interrupted builds are removed, at once or by a later run.
2. ``manifest.json`` holds the size and CRC-32 of every file. It is checked at each use, and a folder that
   does not match is built anew. (CRC-32 finds accidents, which is its purpose here; 540 MB take 0.2 s.)
3. Processes that build the same folder at once do the work twice, and the first to finish wins.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from allheads.disk import cache_root
from allheads.errors import AllHeadsError

MANIFEST = "manifest.json"
STALE_SECONDS = 6 * 3600
# Only folders with this prefix are ever swept: the cache may be set to a folder with other things in it.
_SCRATCH = ".allheads-unfinished-"
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
    if target.exists():
        if _is_intact(target):
            return target
        logger.warning("The cached copy %s is damaged; making it again.", key)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
        try:
            build(scratch)
            _write_manifest(scratch)
            _put_in_place(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
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
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        # Sizes first: they are free, and a truncated file need not be read.
        return all((folder / name).stat().st_size == size for name, (size, _) in files.items()) and all(
            _crc32(folder / name) == crc for name, (_, crc) in files.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _put_in_place(scratch: Path, target: Path) -> None:
    """Rename a finished folder, unless another process has meanwhile put an intact one there."""
    try:
        scratch.replace(target)
    except OSError:
        if _is_intact(target):
            return
        if not target.exists():
            raise
        # A folder with files in it cannot be renamed over: move the damaged one aside, then delete it.
        aside = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=target.parent))
        try:
            target.replace(aside / target.name)
            scratch.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Remove what killed processes left behind; younger folders may be another process's work in progress."""
    for folder in root.glob(f"{_SCRATCH}*"):
        try:
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except OSError:  # it vanished, or it is not a folder
            continue
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
