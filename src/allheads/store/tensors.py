"""Tensors on disk and in a network: safetensors files, digests, and putting values in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from allheads.disk import tensor_digest
from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge
from allheads.models.origin import state
from allheads.progress import bar
from allheads.store.record import Record, damaged
from allheads.untrusted import read_tensors

STEM = "twin"
#: Bytes in a file; one tensor may be more.
SHARD = 2_000_000_000


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor: of its name, dtype, shape and bytes."""
    return {name: tensor_digest(name, tensor) for name, tensor in bar("Hashing", tensors.items())}


def write_tensor_files(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``twin.safetensors``, or ``twin-00001-of-00003.safetensors`` and so on if that would be large."""
    shards = list(_shards(tensors))
    for number, names in enumerate(shards, 1):
        name = STEM if len(shards) == 1 else f"{STEM}-{number:05}-of-{len(shards):05}"
        # Tensors are copied file by file: the copies of all of them might not fit.
        path = folder / f"{name}.safetensors"
        path.touch()
        usual = path.stat().st_mode  # safetensors lets nobody else read what it writes
        save_file(_apart({name: tensors[name] for name in names}), path, {"format": "pt"})
        path.chmod(usual)


def read_tensor_files(folder: Path, record: Record) -> dict[str, Tensor]:
    """Every tensor of the files that the record names."""
    tensors: dict[str, Tensor] = {}
    for name in record.files:
        if name.endswith(".safetensors"):
            try:
                tensors |= read_tensors(folder / name)[1]
            except (OSError, ValueError) as cause:
                raise damaged(folder, f"{name} that cannot be read: {cause}") from cause
    return tensors


def set_tensors(model: TransformerBridge, tensors: Mapping[str, Tensor]) -> None:
    """Let parameters and buffers have these values, in new memory; equal ones stay where they are.

    Raises `AllHeadsError` if the shape of a parameter differs. Buffers may grow with what a model has been run on, and
    edited heads have any number of bias tokens.
    """
    for name, old in state(model).items():
        new = tensors.get(name)
        if new is None or (new.dtype == old.dtype and torch.equal(new.to(old.device), old)):
            continue
        if new.shape != old.shape and isinstance(old, nn.Parameter) and ".edited." not in name:
            raise AllHeadsError(
                f"a network with {name} of shape {tuple(new.shape)}",
                str(tuple(old.shape)),
                "The twin was made from a model of other sizes.",
            )
        made = _like(old, new)
        if isinstance(old, nn.Parameter):
            old.data = made
        else:
            _replace_buffer(model, old, made)


def _replace_buffer(model: TransformerBridge, old: Tensor, new: Tensor) -> None:
    """A buffer is no object that could be given other memory, so whoever has it gets the new one."""
    # Not everything in the network is a part of the bridge.
    for module in (*model.modules(), *model.original_model.modules()):
        for leaf, tensor in module._buffers.items():
            if tensor is old:
                module._buffers[leaf] = new


def _like(old: Tensor, new: Tensor) -> Tensor:
    """The new values, on the device and in the memory order of the old ones: another order may round otherwise."""
    if new.shape != old.shape:
        return new.to(old.device, copy=True)
    return torch.empty_like(old, dtype=new.dtype, requires_grad=False).copy_(new)


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense, on the processor, and none of them in the memory of something larger or of another."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        alone = dense.untyped_storage().nbytes() == dense.nbytes and dense.data_ptr() not in taken
        apart[name] = dense if alone else dense.clone()
        taken.add(dense.data_ptr())
    return apart
