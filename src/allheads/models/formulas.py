r"""Which projection of an MLP does what, found by running it: names and forward code differ, arithmetic does not.

The module is run on random input, and what every projection reads and writes is looked at. Those that read the
input are the value and the gate, or both in one (joint); the one that runs last writes the output, and what it reads
must be, entry by entry,

    f(s t)          plain          f(s g) u        gated

for a known activation f. A factor s on the preactivation and one on the output are measured; a residual that the
module adds itself is taken off. Preactivations span [-12, 12], and are then blown up to thousands, where a clamp or
a learned slope would show.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from allheads.errors import AllHeadsError
from allheads.gates.activations import ACTIVATIONS, Activation

#: Input rows, and the largest preactivation of each of the two probes.
ROWS, SPANS = 8, (12.0, 4000.0)
#: Relative agreement asked for; formulas of activations differ by 4e-4 and more, gelu_fast excepted.
CLOSE = 2e-5


@dataclass(frozen=True)
class Part:
    """A projection, or a slice of its outputs: ``weight[:, start::step][:, :count]`` in TransformerLens orientation."""

    name: str
    start: int = 0
    step: int = 1
    count: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The slice of a tensor whose last axis is the projection's outputs; a view."""
        return tensor[..., self.start :: self.step][..., : self.count]


@dataclass(frozen=True)
class Roles:
    """Who does what in an MLP: ``scale_out * out(f(scale_in * gate) * value)``, without ``value`` if plain."""

    value: Part
    gate: Part | None
    out: str
    activation: Activation
    scale_in: float = 1.0
    scale_out: float = 1.0
    residual: bool = False


@dataclass(frozen=True)
class Trace:
    """One run: what the module read, what each projection read and wrote, and what came out."""

    x: Tensor
    projections: list[tuple[str, Tensor, Tensor]]
    out: Tensor

    def split(self) -> list[Trace]:
        """A run for each of `SPANS`, which were a batch."""
        projections = [
            [(name, *pair) for pair in zip(read.chunk(len(SPANS)), out.chunk(len(SPANS)), strict=True)]
            for name, read, out in self.projections
        ]
        parts = zip(self.x.chunk(len(SPANS)), self.out.chunk(len(SPANS)), strict=True)
        return [Trace(x, [each[n] for each in projections], out) for n, (x, out) in enumerate(parts)]


def find_formula(module: nn.Module, d_model: int, known: Sequence[Roles] = ()) -> Roles | None:
    """The roles in ``module``, those ``known`` tried first; None if it computes something else."""
    residual = takes_residual(module)
    traces = _spanning(module, d_model, residual)
    if not traces:
        return None
    for candidate in chain(known, _candidates(traces[-1], residual)):
        if candidate.residual == residual and all(_agrees(candidate, trace) for trace in traces):
            return candidate
    return None


def computes_mlp(module: nn.Module) -> bool:
    """Is this module an MLP of a known kind? It has two or three projections of its own, and the numbers fit."""
    projections = [child for child in module.children() if is_projection(child)]
    if len(projections) not in (2, 3) or not all(isinstance(p, nn.Parameter) for p in module.parameters()):
        return False
    dtype = torch.promote_types(next(module.parameters()).dtype, torch.float32)
    try:
        return find_formula(in_dtype(module, dtype), input_size(projections[0])) is not None
    except Exception:
        # Whatever cannot be called with a stream alone, for whatever reason, is something else.
        return False


def is_projection(module: nn.Module) -> bool:
    """A linear map with weights of its own."""
    return isinstance(module, (nn.Linear, Conv1D))


def input_size(module: nn.Module) -> int:
    """``d_model`` of what an MLP reads: the input of its first projection."""
    first = next((child for child in module.modules() if is_projection(child)), None)
    if first is None:
        raise AllHeadsError("an MLP with linear projections", type(module).__name__, "It is not supported yet.")
    weight = first.get_parameter("weight")
    return weight.shape[0] if isinstance(first, Conv1D) else weight.shape[1]


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself if it computes in this dtype, or else a copy that does."""
    if all(p.dtype == dtype for p in module.parameters()):
        return module
    # Cast while copying: there is never a second copy in the dtype of the module.
    cast: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) if p.is_floating_point() else p
        for p in module.parameters()
    }
    return copy.deepcopy(module, cast).to(dtype)


def takes_residual(module: nn.Module) -> bool:
    """Does the module add the residual stream itself?"""
    return "residual" in inspect.signature(module.forward).parameters


def call(module: nn.Module, x: Tensor, residual: bool) -> Tensor:
    """What the module adds to the stream; a tuple's first entry is meant."""
    out = module(x, torch.zeros_like(x)) if residual else module(x)
    return out[0] if isinstance(out, tuple) else out


def _spanning(module: nn.Module, d_model: int, residual: bool) -> list[Trace]:
    """For each of `SPANS` what the module does where that is the largest preactivation; empty if nothing reads x."""
    parameter = next(module.parameters())
    x = torch.randn(1, ROWS, d_model, generator=torch.Generator().manual_seed(0)).to(parameter)
    trace = _run(module, x, residual)
    readers = [out for _, read, out in trace.projections if _same(read, trace.x)]
    if not readers:
        return []
    largest = max(max(float(out.abs().max()) for out in readers), 1e-6)
    # Together, because the time goes into reading the weights.
    return _run(module, torch.cat([x * (span / largest) for span in SPANS]), residual).split()


def _run(module: nn.Module, x: Tensor, residual: bool) -> Trace:
    seen: list[tuple[str, Tensor, Tensor]] = []
    handles = []
    for name, child in module.named_modules():
        if is_projection(child):
            handles.append(child.register_forward_hook(_recorder(name, seen)))
    try:
        with torch.no_grad():
            out = call(module, x, residual)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(x, seen, out)


def _recorder(name: str, seen: list[tuple[str, Tensor, Tensor]]) -> Callable[..., None]:
    def record(_: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append((name, inputs[0], output))

    return record


def _candidates(trace: Trace, residual: bool) -> Iterator[Roles]:
    """Every reading of one run that its numbers allow."""
    readers = [(name, out) for name, read, out in trace.projections if _same(read, trace.x)]
    last, read, written = trace.projections[-1]
    width = read.shape[-1]
    names = [name for name, _ in readers]
    scale_out = _factor(trace.out, written)
    if scale_out is None or last in names or len(set(names)) != len(names):
        return
    splits: list[tuple[Part, Part | None]] = []
    if len(readers) == 1 and readers[0][1].shape[-1] == width:
        splits = [(Part(names[0]), None)]
    elif len(readers) == 1 and readers[0][1].shape[-1] == 2 * width:
        splits = _halves(names[0], width)
    elif len(readers) == 2:
        splits = [(Part(names[1]), Part(names[0])), (Part(names[0]), Part(names[1]))]
    for value, gate in splits:
        for activation in ACTIVATIONS.values():
            if gate is not None or activation.name != "linear":
                yield from _scaled(Roles(value, gate, last, activation, 1.0, scale_out, residual), trace)


def _halves(name: str, width: int) -> list[tuple[Part, Part | None]]:
    first, second = Part(name, 0, 1, width), Part(name, width, 1, width)
    even, odd = Part(name, 0, 2), Part(name, 1, 2)
    return [(second, first), (first, second), (odd, even), (even, odd)]


def _scaled(roles: Roles, trace: Trace) -> Iterator[Roles]:
    """The same roles as they are, and with the factor that large positive preactivations show."""
    yield roles
    if roles.gate is None:
        return
    outputs = {name: out for name, _, out in trace.projections}
    gate, value = (part.of(outputs[part.name]) for part in (roles.gate, roles.value))
    open_ = gate > 0.5 * gate.max()
    ratio = (trace.projections[-1][1] / (gate * value))[open_]
    factor = float(ratio.median())
    if abs(factor - 1.0) > 1e-3:
        yield Roles(**(vars(roles) | {"scale_in": factor}))


def _agrees(roles: Roles, trace: Trace) -> bool:
    """Does what the last projection reads equal the formula, and what comes out what it writes?"""
    outputs = {name: out for name, _, out in trace.projections}
    parts = [roles.value] if roles.gate is None else [roles.gate, roles.value]
    if trace.projections[-1][0] != roles.out or any(part.name not in outputs for part in parts):
        return False
    first, *rest = (part.of(outputs[part.name]) for part in parts)
    expected = roles.activation(roles.scale_in * first)
    expected = expected * rest[0] if rest else expected
    _, read, written = trace.projections[-1]
    return _close(read, expected) and _close(trace.out, roles.scale_out * written)


def _same(read: Tensor, x: Tensor) -> bool:
    return read.numel() == x.numel() and torch.equal(read.reshape(x.shape), x)


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.double().flatten(), b.double().flatten()
    return a.shape == b.shape and bool(((a - b).abs() <= CLOSE * (b.abs() + 1e-2 * b.abs().max())).all())


def _factor(out: Tensor, written: Tensor) -> float | None:
    """The constant that makes one the other, 1 where that is close."""
    if out.numel() != written.numel():
        return None
    a, b = out.double().flatten(), written.double().flatten()
    factor = float((a @ b) / (b @ b).clamp_min(1e-300))
    return 1.0 if abs(factor - 1.0) < 1e-6 else factor
