"""What a bridge was like when it was made: the tensors of its network by name, and a fingerprint of each.

A twin shares its source's memory, so training in place, or an edit of ordinary attention, changes both, and nobody is
told. Fingerprints, taken by `load` and by `convert`, tell afterwards which tensors are still what was read. They are
sums of machine words along rows and along columns, which cost about as much as reading the memory, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from itertools import chain

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from allheads.disk import digest
from allheads.heads.bank import HeadBank
from allheads.models.compat import network_path

#: Words of eight bytes in a row, and rows that are worked on at a time: a megabyte, which fits a cache.
_ROW, _BLOCK = 1024, 128
#: Ends the fingerprint of a matrix that lies in memory column by column.
TRANSPOSED = "T"


@dataclass(frozen=True)
class Origin:
    """The name and dtype that `load` was given, if it was used, and a fingerprint of every tensor.

    A fingerprint is None where a tensor was no longer what had been loaded. ``revision`` is the commit of a model of
    the Hub.
    """

    name: str | None
    dtype: torch.dtype
    state: dict[str, str | None]
    revision: str | None = None


def state(model: TransformerBridge) -> dict[str, Tensor]:
    """Every parameter and buffer of a bridge's network, once, by name.

    Names are paths in the network, without the bridge's components; heads are found under their location in the bridge:
    ``model.embed_tokens.weight``, ``blocks.3.mlp.W_in``, ``blocks.3.mlp.edited.W_Q``.
    """
    titles = _titles(model.original_model)
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in model.original_model.named_modules():
        prefix = titles.get(id(module), network_path(path))
        for leaf, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{prefix}.{leaf}".lstrip(".")] = tensor
    return found


def fingerprint(tensor: Tensor) -> str:
    """A digest that tells an accidental change of a tensor, at memory speed.

    >>> W = torch.arange(6.0).view(2, 3)
    >>> fingerprint(W) == fingerprint(W.clone()), fingerprint(W) == fingerprint(W.flip(0))
    (True, False)
    """
    return _digest(tensor) + _order(tensor)


def _digest(tensor: Tensor) -> str:
    """Of the values as they lie in memory, a matrix turned or not."""
    untransposed = tensor.mT if _order(tensor) else tensor
    data = untransposed.detach().contiguous().flatten().view(torch.uint8)
    whole = len(data) // (8 * _ROW) * (8 * _ROW)
    # Words have to begin where words begin.
    head = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()
    columns, rows = torch.zeros(_ROW, dtype=torch.int64, device=tensor.device), []
    for block in head.view(torch.int64).view(-1, _ROW).split(_BLOCK):
        # A sum that wraps around loses highest bits in pairs, and with them signs: so they count elsewhere as well.
        mixed = (block >> 29).add_(block)
        columns += mixed.sum(0)
        rows.append(mixed.sum(1))
    parts = (torch.cat([columns, *rows]), data[whole:])
    what = f"{tensor.dtype} {tuple(untransposed.shape)}"
    return digest(what, *(part.cpu().numpy().tobytes() for part in parts))[:16]


def mark_loaded(model: TransformerBridge, name: str, dtype: torch.dtype, revision: str | None) -> None:
    """Note on a bridge that `load` has just read it under this name."""
    prints: dict[str, str | None] = {name: fingerprint(tensor) for name, tensor in state(model).items()}
    model.loaded_from = Origin(name, dtype, prints, revision)


def origin_of(twin: TransformerBridge, source: TransformerBridge) -> Origin:
    """Where a new twin's tensors come from. What lies where the source was loaded to is not read once more."""
    now = state(source)
    prints = {name: cache(partial(fingerprint, tensor)) for name, tensor in now.items()}
    loaded: Origin | None = getattr(source, "loaded_from", None)
    first = {name: prints[name]() if loaded is None else loaded.state.get(name) for name in now}
    names = {_memory_key(tensor): name for name, tensor in now.items()}

    def recorded(tensor: Tensor) -> str | None:
        if (name := names.get(_memory_key(tensor))) is not None:
            known = first[name]
            return known and known.removesuffix(TRANSPOSED) + _order(tensor)
        # A part of a tensor, or a copy of something, is as loaded where that is: for a copy, where everything is.
        origins = [name for name, old in now.items() if _memory(old) == _memory(tensor)] or list(now)
        return fingerprint(tensor) if all(first[name] == prints[name]() for name in origins) else None

    fingerprints = {name: recorded(tensor) for name, tensor in state(twin).items()}
    if loaded is None:
        return Origin(None, source.cfg.dtype, fingerprints)
    return Origin(loaded.name, loaded.dtype, fingerprints, loaded.revision)


def _order(tensor: Tensor) -> str:
    return TRANSPOSED if tensor.ndim == 2 and tensor.stride(0) < tensor.stride(1) else ""


def _memory_key(tensor: Tensor) -> tuple[object, ...]:
    """Where in memory a tensor is, the same for a matrix and its transpose."""
    untransposed = tensor.mT if _order(tensor) else tensor
    return tensor.data_ptr(), tensor.dtype, untransposed.shape, untransposed.stride()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _titles(network: nn.Module) -> dict[int, str]:
    """Banks of heads, and their parts, by the names of their hook points in the bridge."""
    return {
        id(module): f"{bank.hooks.hook_z.name.removesuffix('.hook_z')}.{inner}".rstrip(".")
        for bank in network.modules()
        if isinstance(bank, HeadBank) and bank.hooks.hook_z.name
        for inner, module in bank.named_modules()
    }
