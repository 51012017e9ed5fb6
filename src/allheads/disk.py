"""Files that are written whole or not at all, and the folder of the cache."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from allheads.errors import AllHeadsError


def checked_path(path: str | Path) -> Path:
    """A file that can be written. Raises `AllHeadsError` for a folder, or one in a folder that does not exist."""
    target = Path(path)
    if target.is_dir():
        raise AllHeadsError("a file to write to", f"the folder {target}", "Add a file name, such as report.html.")
    if not target.parent.is_dir():
        raise AllHeadsError("a path in a folder that exists", str(target), f"Create {target.parent} first.")
    return target


def write_whole(target: Path, content: str | bytes) -> None:
    """All or nothing: into a new file beside the target, then in its place. Raises `AllHeadsError` if it fails."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(target)
    except OSError as error:
        raise AllHeadsError(
            f"to write {target}", str(error.strerror or error), "Choose a path that can be written."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def cache_root() -> Path:
    """The environment variable ``ALLHEADS_CACHE``, or else the user's cache folder for allheads."""
    chosen = os.environ.get("ALLHEADS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("allheads")
