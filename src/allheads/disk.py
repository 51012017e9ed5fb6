"""Files and folders that are written whole or not at all, and the folder of the cache."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from allheads.errors import AllHeadsError

if TYPE_CHECKING:
    from torch import Tensor

#: Names that folders have while they are written, and that old ones have while they are replaced.
_UNFINISHED, _REPLACED = ".allheads-unfinished-", ".allheads-replaced-"
#: Seconds without a change after which an unfinished folder was left by a process that died.
STALE = 6 * 3600


def checked_path(path: str | Path) -> Path:
    """A path that a file can be written to.

    Raises `AllHeadsError` for a folder, a device, a pipe or a socket, and for a path in a folder that does not exist.
    """
    target = Path(path)
    followed = _followed(target)
    if target.is_dir():
        raise AllHeadsError("a file to write to", f"the folder {target}", "Add a file name, such as report.html.")
    if followed.exists() and not followed.is_file():
        raise AllHeadsError(
            "a file to write to", f"{target}, a device, pipe or socket", "Name a file in an ordinary folder."
        )
    if not followed.parent.is_dir():
        raise AllHeadsError("a path in a folder that exists", str(target), f"Create {followed.parent} first.")
    return target


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A temporary path beside the target, to write to; it takes the target's place at the end, and goes if that fails.

    A symbolic link stays, and the file that it names is replaced. Raises `AllHeadsError` for what `checked_path`
    refuses, and where the disk refuses.
    """
    target = _followed(checked_path(path))
    beside = _part_of(target, os.getpid())
    try:
        _remove_parts_of_the_dead(target)
        beside.touch()
        usual = beside.stat().st_mode  # safetensors lets nobody else read what it writes
        yield beside
        beside.chmod(usual)
        beside.replace(target)
    except OSError as error:
        raise AllHeadsError(
            f"to write {target}", str(error.strerror or error), "Choose a path that can be written."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _part_of(target: Path, process: int | str) -> Path:
    """Where a process of this machine writes a file; a folder may be shared by several machines."""
    return target.with_name(f".{target.name}.{platform.node()}.{process}.part")


def _remove_parts_of_the_dead(target: Path) -> None:
    """Remove what processes of this machine left that were killed while they wrote this file."""
    for part in target.parent.glob(glob.escape(_part_of(target, "").name.removesuffix(".part")) + "*.part"):
        process = part.name.split(".")[-2]
        if process.isdecimal() and not _is_alive(int(process)):
            part.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere a signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text or bytes, all or nothing; see `written`."""
    with written(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file, all or nothing; see `written`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with written(path) as beside:
        try:
            save_file(dict(tensors), beside, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


@contextmanager
def replaced_folder(target: Path, stays: Callable[[Path], bool] = lambda old: False) -> Iterator[Path]:
    """An empty folder beside the target, to write into; it takes the target's place at the end, and goes if that fails.

    What stands in that place then is removed, or put back if the last step fails; where ``stays`` says so of it, the
    new folder is dropped instead. Processes that do the same at once do the work twice. Leftovers of processes that
    died are removed. Errors of the disk are raised as they are.
    """
    _remove_stale(target.parent)
    scratch = _folder_beside(target, _UNFINISHED)
    try:
        yield scratch
        try:
            scratch.replace(target)
        except OSError:
            if not target.exists():
                raise
            if not stays(target):
                _exchange(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def digest(*contents: str | bytes | memoryview | Path) -> str:
    """The SHA-256 of texts, bytes and files, one after another.

    >>> digest("heads") == digest(b"he", "ads")
    True
    """
    found = hashlib.sha256()
    for content in contents:
        if isinstance(content, Path):
            with content.open("rb") as file:
                hashlib.file_digest(file, lambda: found)
        else:
            found.update(content.encode() if isinstance(content, str) else content)
    return found.hexdigest()


def _followed(path: Path) -> Path:
    """The file itself, behind symbolic links."""
    return Path(os.path.realpath(path))


def cache_root() -> Path:
    """The environment variable ``ALLHEADS_CACHE``, or else the user's cache folder for allheads."""
    chosen = os.environ.get("ALLHEADS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("allheads")


def _folder_beside(target: Path, prefix: str) -> Path:
    """A new folder on the same disk; tempfile would make it private, and so what it becomes."""
    folder = target.with_name(f"{prefix}{secrets.token_hex(8)}")
    folder.mkdir()
    return folder


def _exchange(scratch: Path, target: Path) -> None:
    """Put a folder where another is. Folders with files cannot be renamed over: the old one goes aside first."""
    aside = _folder_beside(target, _REPLACED)
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


def _remove_stale(parent: Path) -> None:
    """Remove what dead processes left; younger folders may be work in progress, and a replaced one the only copy."""
    for folder in [*parent.glob(f"{_UNFINISHED}*"), *parent.glob(f"{_REPLACED}*")]:
        try:
            age = time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            needed = folder.name.startswith(_REPLACED) and any(
                not (parent / old.name).exists() for old in folder.iterdir()
            )
        except OSError:  # it vanished, or it is not a folder
            continue
        if age > STALE and not needed:
            shutil.rmtree(folder, ignore_errors=True)
