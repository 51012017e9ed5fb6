"""Where in the network, without any bridge, the same tensors pass as at hook points: found by running both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allheads.models.module_paths import module_paths, passed
from allheads.models.observe import probe_inputs, run_network

if TYPE_CHECKING:
    from allheads.twin.twin import TwinBridge

_ENDS = ("hook_in", "hook_out")
#: The largest difference, of the size, between what passes in a twin and in its source; the same for 16 bits.
_CLOSE, _CLOSE_16 = 1e-3, 3e-2


def network_names(twin: TwinBridge) -> tuple[dict[str, str], set[str]]:
    """``model.layers[3].mlp.output``, by the point ``blocks.3.mlp.hook_out``: where both pass the same in one run.

    And the points whose modules pass something else.
    """
    inputs = probe_inputs(twin.original_model, twin.cfg)
    points = {f"{name}.{end}": (path, end) for name, path in module_paths(twin).items() for end in _ENDS}
    with _unedited(twin):
        ours = _passed_here(twin, points.keys() & twin.hook_dict.keys(), inputs)
    theirs = passed(twin, inputs)
    made, different = {}, set()
    for point in sorted(ours.keys() & {point for point, place in points.items() if place in theirs}):
        path, end = points[point]
        there = theirs[path, end]
        if _same(ours[point], there.value):
            ending = "input" if end == "hook_in" else "output[0]" if there.in_tuple else "output"
            made[point] = re.sub(r"\.(\d+)", r"[\1]", path) + f".{ending}"
        else:
            different.add(point)
    return made, different


def _passed_here(twin: TwinBridge, points: Iterable[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of what passes these points: some networks add to it in place."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            if isinstance(value, Tensor):
                found[name] = value.clone()

        return keep

    with torch.no_grad(), twin.hooks(fwd_hooks=[(name, keeper(name)) for name in points]):
        run_network(twin.original_model, inputs)
    return found


@contextmanager
def _unedited(twin: TwinBridge) -> Iterator[None]:
    """The twin as it was converted, for a while: names are of its source."""
    edited = [bank.edited for bank in twin.banks]
    try:
        for bank in twin.banks:
            bank.edited = None
        yield
    finally:
        for bank, heads in zip(twin.banks, edited, strict=True):
            bank.edited = heads


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to rounding. Heads may stand side by side there, or behind positions; positions once for all prompts."""
    if theirs.ndim == ours.ndim and theirs.shape[:1] == (1,):
        theirs = theirs.expand(len(ours), *theirs.shape[1:])
    behind = [ours.transpose(1, 2)] if ours.ndim == 4 and ours.transpose(1, 2).shape == theirs.shape else []
    return any(_close(each, theirs) for each in (ours, *behind))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel():
        return False
    close = _CLOSE_16 if a.dtype in (torch.float16, torch.bfloat16) else _CLOSE
    flat_a, flat_b = (value.double().flatten() for value in (a, b))
    return bool((flat_a - flat_b).norm() <= close * flat_b.norm())
