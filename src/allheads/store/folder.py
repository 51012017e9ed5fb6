"""The folder of a saved twin: it is there whole or not at all, and its files have checksums."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allheads.disk import digest, recover, replaced_folder
from allheads.errors import AllHeadsError
from allheads.store.record import CARD, FILE, FileRecord, Record, damaged, read_record
from allheads.untrusted import inside


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of ``target`` at the end if nothing was raised.

    Raises `AllHeadsError` if ``target`` exists and is no saved twin, or cannot be written.
    """
    recover(target.parent)
    _require_free(target)
    try:
        with replaced_folder(target) as scratch:
            yield scratch
    except OSError as cause:
        raise AllHeadsError(
            f"a place to write {target} to", f"{type(cause).__name__}: {cause}", "Make room, or name another folder."
        ) from cause


def listing(folder: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of every file of a folder, ``twin.json`` excepted."""
    return {
        name: FileRecord((folder / name).stat().st_size, digest(folder / name))
        for name in sorted(_names(folder) - {FILE})
    }


def check(folder: Path, record: Record) -> None:
    """Raise `AllHeadsError` if a file that the record names is missing or not as it was written."""
    for name, (size, checksum) in record.files.items():
        try:
            path = (folder / name).resolve()
            there = inside(path, folder) and path.is_file()
            # The size first: it is free, and a truncated file need not be read.
            same = there and path.stat().st_size == size and digest(path) == checksum
        except (OSError, ValueError, RuntimeError) as cause:  # names that cannot be; links in circles
            raise damaged(folder, f"{name!r} that cannot be read ({cause})") from cause
        if not same:
            raise damaged(folder, f"{name} without its checksum" if there else f"no file {name}")


def _require_free(target: Path) -> None:
    if not target.parent.is_dir():
        raise AllHeadsError("a name in an existing folder", str(target), f"Create {target.parent} first.")
    if not target.exists():
        return
    remedy = "Name a new folder, or one that ah.save has written."
    if not (target / FILE).is_file():
        raise AllHeadsError("a new folder, or a saved twin to replace", f"{target}, which is neither", remedy)
    try:
        known = read_record(target).files
    except AllHeadsError as cause:
        raise AllHeadsError(
            "a new folder, or a saved twin to replace", cause.got, "Delete it, or name another."
        ) from cause
    if extra := _names(target) - {FILE, CARD, *known}:
        raise AllHeadsError(
            f"nothing but a saved twin in {target}", f"{', '.join(sorted(extra)[:3])} beside it", remedy
        )


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
