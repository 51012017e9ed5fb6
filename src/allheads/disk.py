"""Files and folders that are written whole or not at all, and the folder of the cache.

Whatever is unfinished lies beside its target under a name that tells the process that made it: what was killed is put
back or removed by the next one that reads or writes there (`recover`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from allheads.errors import AllHeadsError

if TYPE_CHECKING:
    from torch import Tensor

#: Seconds without a change after which what another machine left is taken for dead: its processes cannot be asked.
STALE = 24 * 3600
#: Of unfinished files and folders (``part``), and of the folder where a replaced one waits (``old``). The first part
#: tells processes apart that had the same number, one after the other.
_LEFT = re.compile(r"\.allheads-(?P<process>\w+)-\d+\.(?P<node>.*)\.(?P<number>\d+)\.(part|old)")
_PROCESS, _counter = secrets.token_hex(8), itertools.count()


def named_path(name: str | Path) -> Path:
    """A path as it is meant, with ``~`` filled in; it need not exist.

    Raises `AllHeadsError` for what no file can be called.

    >>> named_path("a" * 300)
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected a path that a file can have, got 'aaaaaaaaaaaa...' (File name too long). \
Check the path.
    """
    reason = "a name without letters" if name == "" else "no text" if not isinstance(name, str | Path) else ""
    try:
        path = Path("" if reason else name).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:  # too long, without permission; with a NUL; no such user
        reason = str(getattr(error, "strerror", None) or error)
    if reason:
        shown = repr(str(name))
        shown = shown if len(shown) < 60 else f"{shown[:13]}...'"
        raise AllHeadsError("a path that a file can have", f"{shown} ({reason})", "Check the path.")
    return path


def checked_path(path: str | Path) -> Path:
    """A path that a file can be written to.

    Raises `AllHeadsError` for a folder, a device, a pipe or a socket, and for a path in a folder that does not exist.
    """
    target = named_path(path)
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


def checked_name(name: str) -> str:
    """A name that is a file in the folder at hand, whatever is put behind it, and nothing else.

    Raises `AllHeadsError` for any other.

    >>> checked_name("mary-or-john")
    'mary-or-john'
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise AllHeadsError("a name of letters, digits, - and _", repr(name), "Such as 'mary-or-john'.")
    return name


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A temporary path beside the target, to write to; it takes the target's place at the end, and goes if that fails.

    A symbolic link stays, and the file that it names is replaced. Raises `AllHeadsError` for what `checked_path`
    refuses, and where the disk refuses.
    """
    target = _followed(checked_path(path))
    beside = _beside(target, "part")
    try:
        recover(target.parent)
        beside.touch()
        usual = beside.stat().st_mode  # safetensors lets nobody else read what it writes
        yield beside
        beside.chmod(usual)
        beside.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def _unwritable(target: Path, error: OSError) -> AllHeadsError:
    return AllHeadsError(
        f"to write {target}", str(error.strerror or error), "Make room, or choose a path that can be written."
    )


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
    new folder is dropped instead. Processes that do the same at once do the work twice. Errors of the disk are raised
    as they are.
    """
    recover(target.parent)
    scratch = _beside(target, "part")
    scratch.mkdir()
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
        _remove(scratch)


def recover(folder: Path) -> None:
    """Put back what processes that were killed had moved aside, and remove what else they left in a folder.

    What a living process of this machine makes stays, and so does for a day what another machine may be making.
    """
    for path in folder.glob(".allheads-*"):
        if (match := _LEFT.fullmatch(path.name)) and _is_left(path, match):
            if path.suffix == ".old":
                _put_back(path)
            _remove(path)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Nobody else claims this file meanwhile, on this machine: for what is written again and again.

    Raises `AllHeadsError` if somebody has. The claim of a process that was killed is void.
    """
    if os.name != "posix":  # elsewhere there is no such lock
        yield
        return
    from fcntl import LOCK_EX, LOCK_NB, flock

    target = _followed(checked_path(path))
    claim = target.with_name(f".allheads-{digest(target.name)[:16]}.claim")
    try:
        file = claim.open("w")
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise AllHeadsError(
            "a file that nobody else is writing", f"{target}, which another process is", "Name another, or wait for it."
        ) from error
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)
        file.close()


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


def tensor_digest(name: str, tensor: Tensor) -> str:
    """SHA-256 of one tensor, of its name, dtype, shape and bytes; its layout in memory does not count.

    >>> import torch
    >>> W = torch.ones(2, 3)
    >>> tensor_digest("W", W) == tensor_digest("W", W.T.contiguous().T)
    True
    >>> tensor_digest("W", W) == tensor_digest("W", W.double())
    False
    """
    import torch

    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return digest(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0", content)


def _followed(path: Path) -> Path:
    """The file itself, behind symbolic links."""
    return Path(os.path.realpath(path))


def cache_root() -> Path:
    """The environment variable ``ALLHEADS_CACHE``, or else the user's cache folder for allheads."""
    chosen = os.environ.get("ALLHEADS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("allheads")


def _beside(target: Path, kind: str) -> Path:
    """A new name on the same disk; it does not depend on the target's, which may be as long as names can be."""
    return target.with_name(f".allheads-{_PROCESS}-{next(_counter)}.{platform.node()}.{os.getpid()}.{kind}")


def _exchange(scratch: Path, target: Path) -> None:
    """Put a folder where another is. Folders with files cannot be renamed over: the old one goes aside first."""
    aside = _beside(target, "old")
    aside.mkdir()
    try:
        target.replace(aside / target.name)
        scratch.replace(target)
    finally:
        _put_back(aside)
        _remove(aside)


def _put_back(aside: Path) -> None:
    """Let what was moved aside have its place again, if that is free."""
    with suppress(OSError):  # others do the same
        for old in aside.iterdir():
            if not (place := aside.with_name(old.name)).exists():
                old.replace(place)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there. What has begun to go is not put back: it is no longer called ``old``."""
    with suppress(OSError):
        path = path.replace(path.with_suffix(".part"))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _is_left(path: Path, name: re.Match[str]) -> bool:
    """Was the process that made this killed?"""
    if name["node"] == platform.node():
        number = int(name["number"])
        return name["process"] != _PROCESS if number == os.getpid() else not _is_alive(number)
    try:
        return time.time() - max(each.stat().st_mtime for each in (path, *path.rglob("*"))) > STALE
    except OSError:  # it went meanwhile
        return False


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere a signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else; it is no number of a process
        return True
    return True
