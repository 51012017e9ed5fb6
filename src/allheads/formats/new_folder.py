"""A folder of files for another tool: it is there whole or not at all, and nothing that is there is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allheads.disk import named_path, replaced_folder
from allheads.errors import AllHeadsError


def checked_folder(folder: str | Path) -> Path:
    """Where a new folder goes.

    Raises `AllHeadsError` if something is there that is not an empty folder, or if no folder is there to put it into.
    """
    target = named_path(folder).resolve()
    if not target.parent.is_dir():
        raise AllHeadsError("a name in an existing folder", str(target), f"Create {target.parent} first.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise _taken(target)
    return target


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write into, which gets its name at the end if nothing was raised.

    Raises `AllHeadsError` as `checked_folder` does, and where the disk refuses.
    """
    target = checked_folder(folder)

    def refuse(there: Path) -> bool:
        raise _taken(there)  # it came meanwhile

    try:
        with replaced_folder(target, refuse) as scratch:
            yield scratch
    except OSError as cause:
        raise AllHeadsError(
            f"to write {target}", str(cause.strerror or cause), "Make room, or choose a path that can be written."
        ) from cause


def _taken(target: Path) -> AllHeadsError:
    return AllHeadsError("the name of a new folder", f"{target}, which is there", "Delete it, or name another.")
