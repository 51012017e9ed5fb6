"""A pure model as one safetensors file: tensors, and a header that says what they are."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from allheads.disk import write_tensors
from allheads.pure.runner import FORMAT, VERSION, Pure, checksum


def save(model: Pure, path: str | Path) -> None:
    """Write a pure model into one safetensors file."""
    tensors: dict[str, Tensor] = {}
    node = _packed(model, tensors, "model")
    tensors = {name: _apart(tensor) for name, tensor in tensors.items()}
    header = {"version": VERSION, "checksums": {k: checksum(v) for k, v in tensors.items()}, "model": node}
    header["checksum"] = zlib.crc32(json.dumps(header).encode())
    write_tensors(path, tensors, {FORMAT: json.dumps(header)})


def _apart(tensor: Tensor) -> Tensor:
    """Dense, on the processor, and not a slice of something larger, as safetensors has it."""
    dense = tensor.detach().cpu().contiguous()
    return dense if dense.untyped_storage().nbytes() == dense.nbytes else dense.clone()


def _packed(node: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """The header's form of an object; its tensors go into ``tensors``, equal views once."""
    if isinstance(node, Tensor):
        return _stored(node, tensors, where)
    if isinstance(node, list):
        return [_packed(child, tensors, f"{where}.{number}") for number, child in enumerate(node)]
    if not is_dataclass(node):
        return node
    here = getattr(node, "name", where)
    kept = ((each.name, getattr(node, each.name)) for each in fields(node))
    packed = {name: _packed(child, tensors, f"{here}.{name}") for name, child in kept if child is not None}
    return {"kind": type(node).__name__} | packed


def _stored(tensor: Tensor, tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    """Keep a tensor under a name, once for all views of the same memory; a matrix may be stored transposed."""
    transposed = tensor.ndim == 2 and tensor.mT.is_contiguous() and not tensor.is_contiguous()
    rows = tensor.mT if transposed else tensor
    for known, kept in tensors.items():
        if (kept.data_ptr(), kept.shape, kept.stride(), kept.dtype) == (
            rows.data_ptr(),
            rows.shape,
            rows.stride(),
            rows.dtype,
        ):
            return {"tensor": known, "transposed": transposed}
    tensors[name] = rows
    return {"tensor": name, "transposed": transposed}
