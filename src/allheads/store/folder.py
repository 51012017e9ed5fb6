"""A folder that is there whole or not at all."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allheads.errors import AllHeadsError
from allheads.store.record import FILE, Record, damaged, read


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of ``target`` at the end if nothing was raised.

    Raises `AllHeadsError` if ``target`` exists and is no saved twin, or cannot be written.
    """
    _require_free(target)
    scratch = None
    try:
        scratch = _beside(target, "unfinished")
        yield scratch
        _put_in_place(scratch, target)
    except OSError as cause:
        raise AllHeadsError(
            f"a place to write {target} to", f"{type(cause).__name__}: {cause}", "Make room, or name another folder."
        ) from cause
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def listing(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file of a folder, ``twin.json`` excepted."""
    return {name: _described(folder / name) for name in sorted(_names(folder) - {FILE})}


def check(folder: Path, record: Record) -> None:
    """Raise `AllHeadsError` if a file that the record names is missing or not as it was written."""
    for name, (size, digest) in record.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise damaged(folder, f"no file {name}")
        # The size first: it is free, and a truncated file need not be read.
        if path.stat().st_size != size or _described(path)[1] != digest:
            raise damaged(folder, f"{name} without its checksum")


def _require_free(target: Path) -> None:
    if not target.parent.is_dir():
        raise AllHeadsError("a name in an existing folder", str(target), f"Create {target.parent} first.")
    if not target.exists():
        return
    remedy = "Name a new folder, or one that ah.save has written."
    if not (target / FILE).is_file():
        raise AllHeadsError("a new folder, or a saved twin to replace", f"{target}, which is neither", remedy)
    try:
        known = read(target).files
    except AllHeadsError as cause:
        raise AllHeadsError(
            "a new folder, or a saved twin to replace", cause.got, "Delete it, or name another."
        ) from cause
    if extra := _names(target) - {FILE, *known}:
        raise AllHeadsError(
            f"nothing but a saved twin in {target}", f"{', '.join(sorted(extra)[:3])} beside it", remedy
        )


def _put_in_place(scratch: Path, target: Path) -> None:
    """Rename. An old twin is moved aside first, and back if that fails, because folders cannot be renamed over."""
    if not target.exists():
        scratch.replace(target)
        return
    aside = _beside(target, "replaced")
    old = aside / target.name
    try:
        target.replace(old)
        scratch.replace(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.replace(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _beside(target: Path, what: str) -> Path:
    """A new folder on the same disk; tempfile would make it private, and so the twin."""
    folder = target.parent / f".{target.name}.{what}-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _described(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
