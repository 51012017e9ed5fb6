"""After conversion: is every bank what the model runs, and is nothing else of an MLP run?

Two runs on the input that the source was run on before. By `closed`, the twin is the source's own arithmetic: its
output is the source's up to rounding, or a formula was misread. By `slots`, every bank whose MLP was called has to
run, the output has to be computed from the output z of its heads, and no weight of an MLP or expert may be read by
any other computation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.models.compat import tree_leaves
from allheads.models.mlps import ReplacedMLP
from allheads.models.observe import Activations, run_network
from allheads.twin.twin import TwinBridge

#: Largest difference by `closed`, relative to the largest output; in low precision, so many units in the last place.
CLOSE, ULPS = 1e-3, 16
#: Operations that read weights.
_PRODUCTS = frozenset(
    ("linear", "matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "grouped_mm", "conv1d", "mul")
)


def audit(twin: TwinBridge, units: list[ReplacedMLP], inputs: dict[str, Tensor], activations: Activations) -> None:
    """Raise `AllHeadsError` if the twin is not what it says; ``activations`` is the source's run on ``inputs``."""
    called = {mlp.location for unit in units if activations.inputs.get(unit.reads) for mlp in unit.mlps}
    expected = {layer.location: layer.bank for layer in twin.layers if layer.location in called}
    optional = {mlp.location for unit in units if unit.site.experts or mlp_of_mixture(unit) for mlp in unit.mlps}
    probes: dict[int, Tensor] = {}
    owned = [t for unit in units for mlp in unit.mlps for name, t in mlp.tensors.items() if name.startswith("W_")]
    watched = _probed(expected.values(), probes)
    # The graph is walked, never run backward: it needs to keep no activations.
    nothing = torch.empty(0)
    graph_only = saved_tensors_hooks(lambda _: nothing, lambda kept: kept)
    with torch.enable_grad(), graph_only, twin.evaluated("slots"), watched, _Guard(twin.banks, owned):
        reached = _ancestors(run_network(twin.original_model, inputs))
    # Last, because TransformerLens keeps the last patterns: they should not hold the probe's graph.
    _same_output(twin, inputs, activations)
    heard = {number for number, probe in probes.items() if id(probe) in reached}
    silent = [
        location.stem
        for location, bank in expected.items()
        if location not in optional and (id(bank) not in heard or not bank.W_out.any())
    ]
    if silent:
        raise AllHeadsError(
            f"{len(expected)} banks of heads that the output depends on",
            f"{', '.join(silent)} without effect",
            "Their output weights are zero, or this architecture calls its MLPs in a way that is not supported yet.",
        )


def mlp_of_mixture(unit: ReplacedMLP) -> bool:
    """Is this one expert of several, which no token may be routed to?"""
    return any(mlp.location.expert is not None for mlp in unit.mlps)


def _ancestors(out: Tensor) -> set[int]:
    """The leaves that a result was computed from. Walking the graph costs nothing, unlike a gradient."""
    leaves, stack, visited = set(), [out.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaves.add(id(getattr(node, "variable", None)))
        stack += [inner for inner, _ in node.next_functions]
    return leaves


def _same_output(twin: TwinBridge, inputs: dict[str, Tensor], activations: Activations) -> None:
    with torch.no_grad(), twin.evaluated("closed"):
        out = run_network(twin.original_model, inputs)
    assert activations.result is not None
    allowed = max(CLOSE, ULPS * torch.finfo(out.dtype).eps) * float(activations.result.abs().max())
    off = float((out - activations.result).abs().max())
    if not off <= allowed:
        raise AllHeadsError(
            "a twin with the source's output",
            f"one {off:.1e} away, where {allowed:.1e} is rounding",
            "Something in this architecture's layers is not what it seems: it is not supported yet.",
        )


@contextmanager
def _probed(banks: Any, probes: dict[int, Tensor]) -> Iterator[None]:
    """Add a variable zero to what the heads of each bank write."""

    def adder(bank: HeadBank) -> Any:
        def add(z: Tensor, hook: object) -> Tensor:
            probe = torch.zeros_like(z, requires_grad=True)
            probes.setdefault(id(bank), probe)
            return z + probes[id(bank)] if probes[id(bank)].shape == z.shape else z

        return add

    points = [bank.hooks.hook_z for bank in banks]
    for bank in banks:
        bank.hooks.hook_z.add_hook(adder(bank))
    try:
        yield
    finally:
        for point in points:
            point.remove_hooks("fwd")


class _Guard(TorchFunctionMode):
    """Refuse any product outside the banks that reads these weights."""

    def __init__(self, banks: list[HeadBank], weights: list[Tensor]) -> None:
        super().__init__()
        self.spans = sorted((w.data_ptr(), w.data_ptr() + w.numel() * w.element_size()) for w in weights)
        self.starts = [start for start, _ in self.spans]
        self.inside = 0
        self.handles: list[Any] = []
        self.banks = banks

    def __enter__(self) -> Any:
        for bank in self.banks:
            self.handles.append(bank.register_forward_pre_hook(self._enter_bank))
            self.handles.append(bank.register_forward_hook(self._leave_bank, always_call=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def _enter_bank(self, *_: object) -> None:
        self.inside += 1

    def _leave_bank(self, *_: object) -> None:
        self.inside -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.inside and getattr(func, "__name__", "").strip("_") in _PRODUCTS:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self._check(tensor, func)
        return func(*args, **kwargs)

    def _check(self, tensor: Tensor, func: Any) -> None:
        address = tensor.data_ptr() if tensor.device.type != "meta" else -1
        before = bisect_right(self.starts, address)
        if before and address < self.spans[before - 1][1]:
            raise AllHeadsError(
                "an MLP's weights read by its heads only",
                f"a tensor of shape {tuple(tensor.shape)} read by {func.__name__}",
                "This architecture uses an MLP outside its location in the layer: it is not supported yet.",
            )
