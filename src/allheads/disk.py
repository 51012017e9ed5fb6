"""Files that are written whole or not at all, and the folder of the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from allheads.errors import AllHeadsError

if TYPE_CHECKING:
    from torch import Tensor


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
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
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


def digest(content: str | bytes | Path) -> str:
    """The SHA-256 of a text, of bytes, or of a file.

    >>> digest("heads")[:8] == digest(b"heads")[:8]
    True
    """
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _followed(path: Path) -> Path:
    """The file itself, behind symbolic links."""
    return Path(os.path.realpath(path))


def cache_root() -> Path:
    """The environment variable ``ALLHEADS_CACHE``, or else the user's cache folder for allheads."""
    chosen = os.environ.get("ALLHEADS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("allheads")
