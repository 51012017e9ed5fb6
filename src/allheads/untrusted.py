"""Files that somebody else may have written, or an accident changed: the one way in which they are read.

What is read is bounded before any of it becomes an object, in bytes and in depth, and then has to have the very type
that was asked for. A seal, a SHA-256 of the content within the content, finds accidents; whoever forges a file can seal
it, so nothing is trusted because of its seal.

Whatever is wrong is a `ValueError` with a reason in one line. Callers say what was expected and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from allheads.disk import digest

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
#: Bytes of JSON in a file, and of the header of a safetensors file: more than the largest models need.
JSON, HEADER = 2**24, 2**23
_SEAL = "checksum"


def fitted(content: object, kind: type[T], context: object = None, *, others: bool = False) -> T:
    """Content with the type ``kind``: strictly, so that 1 is neither true nor "1".

    What kind does not name is refused; in files of ``others``, who may have more to say, it is passed over.

    >>> fitted({"layers": [1, 2]}, dict[str, list[int]])
    {'layers': [1, 2]}
    >>> fitted({"layers": ["one"]}, dict[str, list[int]])
    Traceback (most recent call last):
    ...
    ValueError: layers.0: input should be a valid integer
    """
    try:
        # As JSON: of Python objects, strictness would ask that dataclasses are there already.
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
        return adapter.validate_json(
            json.dumps(content), strict=True, extra="ignore" if others else "forbid", context=context
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}".removeprefix(": ")) from None


def parsed(text: str | bytes, kind: type[T], limit: int = JSON) -> T:
    """JSON as a value of this type; not nested more than 200 deep, without halves of characters.

    >>> parsed("[" * 1000, list)
    Traceback (most recent call last):
    ...
    ValueError: recursion limit exceeded at line 1 column 202
    """
    _bounded(len(text), limit)
    return fitted(from_json(text), kind)


def read_json(path: Path, kind: type[T], limit: int = JSON) -> T:
    """The JSON in a file. Raises also `OSError`."""
    return parsed(_contents(path, limit), kind, limit)


def read_tensors(path: Path, names: set[str] | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, which has to have tensors of just these names. Raises also `OSError`.

    Memory is that of the tensors: a file that tells of more than it has is refused.
    """
    from safetensors import safe_open

    header_size(path)
    try:
        with safe_open(path, "pt") as file:
            found = set(file.keys())
            if names is not None and found != names:
                raise ValueError(f"other tensors than expected, such as {min(found ^ names)!r}")
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in sorted(found)}
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # safetensors and torch have many for sizes that cannot be
        raise ValueError(str(error).partition("\n")[0]) from error


def header_size(path: Path) -> int:
    """Bytes of the header of a safetensors file. Raises `ValueError` if it would take long to read, or `OSError`."""
    size = int.from_bytes(_contents(path, None, first=8), "little")
    _bounded(size, HEADER)
    return size


def inside(path: Path, folder: Path) -> bool:
    """Is a file in a folder, links followed, or where the Hugging Face cache has the files of such a folder?

    >>> inside(Path("twin/../elsewhere.json"), Path("twin"))
    False
    """
    home = folder.resolve()
    # The cache has its files beside the folders that show them.
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    return any(path.resolve().is_relative_to(each) for each in homes)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content for JSON with its seal; `unsealed` takes it off.

    >>> unsealed(sealed({"done": 3}))
    {'done': 3}
    """
    return {**content, _SEAL: _seal(content)}


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
    """What was sealed. Raises `ValueError` if it is no longer that."""
    bare = {name: value for name, value in content.items() if name != _SEAL}
    if content.get(_SEAL) != _seal(bare):
        raise ValueError("content without its checksum")
    return bare


def _seal(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True))


def _contents(path: Path, limit: int | None, first: int = -1) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path.name}, which is no file")
    with path.open("rb") as file:
        if limit is not None:
            _bounded(path.stat().st_size, limit)
        return file.read(first)


def _bounded(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"{size:,} bytes, where at most {limit:,} are read")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
