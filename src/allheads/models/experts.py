"""Reading a stack of experts: three-dimensional weights, one slice an expert.

Called as ``experts(rows, top_k_index, top_k_weights)``, the router's weight multiplies what an expert writes; called
with rows alone, those are sorted by expert and scaled before. Which axis is the input, and which half the gate, is
found by running expert 0 on its own; every other expert is held against the same formula.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.gates.activations import ACTIVATIONS, Activation
from allheads.models.find_mlps import Site
from allheads.models.formulas import CLOSE, ROWS, SPANS, Part, in_dtype
from allheads.models.mlps import MLP, Unit, check_finite
from allheads.models.observe import Seen


@dataclass(frozen=True)
class Layout:
    """How a stack lays out its weights: ``gate`` is None for experts without one."""

    value: Part
    gate: Part | None
    transposed: bool
    activation: Activation


def routed(module: nn.Module) -> bool:
    """Is the stack told which expert takes which row?"""
    return len(inspect.signature(module.forward).parameters) >= 3


def read_experts(site: Site, module: nn.Module) -> Unit:
    """Every expert of a stack as an MLP of its own, over slices of the stack's weights."""
    check_finite(module, site.location)
    first, _ = _weights(module)
    exact = in_dtype(module, torch.promote_types(first.dtype, torch.float32))
    layout = next((each for each in _layouts(module) if _fits(each, exact, 0)), None)
    wrong = 0 if layout is None else _misfit(layout, exact)
    if layout is None or wrong is not None:
        raise AllHeadsError(
            "experts that compute out(f(gate(x)) * in(x)) or out(f(in(x)))",
            f"{type(module).__name__} in {site.location.stem}, whose expert {wrong} fits no such formula"
            " (a clamp, a shifted value, or another activation)",
            "This kind of expert is not supported yet.",
        )
    return Unit(site, [_expert(site, module, layout, number) for number in range(first.shape[0])])


def _expert(site: Site, module: nn.Module, layout: Layout, number: int) -> MLP:
    def reference(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        copied = _copied(module, dtype)
        return lambda x: run_expert(copied, number, x)

    location = replace(site.location, name=f"{site.location.name}.{number}", expert=number)
    return MLP(location, _tensors(module, layout, number), layout.activation, reference)


@lru_cache(maxsize=1)
def _copied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """One copy serves all experts of a stack in turn."""
    return in_dtype(module, dtype)


def run_expert(module: nn.Module, number: int, x: Tensor) -> Tensor:
    """One expert on rows ``[..., d_model]``, with a router's weight of 1."""
    rows = x.flatten(0, -2)
    if routed(module):
        index = torch.full((len(rows), 1), number, device=x.device)
        # The plain implementation: kernels that fuse experts know no float64.
        plain = inspect.unwrap(type(module).forward)
        return plain(module, rows, index, torch.ones(len(rows), 1).to(rows)).view_as(x)
    count = _weights(module)[0].shape[0]
    sorted_rows = torch.zeros(count, *rows.shape).to(rows)
    sorted_rows[number] = rows
    return module(sorted_rows.flatten(0, 1)).view(count, *x.shape)[number]


def _weights(module: nn.Module) -> tuple[Tensor, Tensor]:
    first, last = (p for p in module.parameters(recurse=False) if p.ndim == 3)
    return first, last


def _biases(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters(recurse=False) if p.ndim == 2]


def _layouts(module: nn.Module) -> Iterator[Layout]:
    """Every layout that the shapes allow."""
    first, last = _weights(module)
    for transposed in (False, True):
        fan_in, width = first.shape[1:] if transposed else first.shape[:0:-1]
        inner = last.shape[1] if transposed else last.shape[2]
        if fan_in != (last.shape[2] if transposed else last.shape[1]) or width not in (inner, 2 * inner):
            continue
        halves = [
            (Part("", inner, 1, inner), Part("", 0, 1, inner)),
            (Part("", 0, 1, inner), Part("", inner, 1, inner)),
            (Part("", 1, 2), Part("", 0, 2)),
        ]
        splits: list[tuple[Part, Part | None]] = [*halves] if width == 2 * inner else [(Part(""), None)]
        for value, gate in splits:
            for activation in ACTIVATIONS.values():
                yield Layout(value, gate, transposed, activation)


def _tensors(module: nn.Module, layout: Layout, number: int) -> dict[str, Tensor]:
    first, last = (w[number] if layout.transposed else w[number].T for w in _weights(module))
    tensors = {"W_in": layout.value.of(first), "W_out": last}
    if layout.gate is not None:
        tensors["W_gate"] = layout.gate.of(first)
    biases = [b[number] for b in _biases(module)]
    if biases:
        tensors |= {"b_in": layout.value.of(biases[0]), "b_out": biases[1]}
        if layout.gate is not None:
            tensors["b_gate"] = layout.gate.of(biases[0])
    return tensors


def _misfit(layout: Layout, module: nn.Module) -> int | None:
    """The first expert that is something else."""
    numbers = range(_weights(module)[0].shape[0])
    return next((number for number in numbers if not _fits(layout, module, number)), None)


def _fits(layout: Layout, module: nn.Module, number: int) -> bool:
    tensors = {name: tensor.detach() for name, tensor in _tensors(module, layout, number).items()}
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(ROWS, len(tensors["W_in"]), generator=generator).to(tensors["W_in"])
    largest = max(float((x @ tensors[name]).abs().max()) for name in ("W_in", "W_gate") if name in tensors)
    for span in SPANS:
        rows = x * (span / max(largest, 1e-6))
        with torch.no_grad():
            theirs = run_expert(module, number, rows)
        value = rows @ tensors["W_in"] + tensors.get("b_in", 0.0)
        if layout.gate is None:
            post = layout.activation(value)
        else:
            post = layout.activation(rows @ tensors["W_gate"] + tensors.get("b_gate", 0.0)) * value
        ours = post @ tensors["W_out"] + tensors.get("b_out", 0.0)
        if not float((ours - theirs).abs().max()) <= CLOSE * float(theirs.abs().max()):
            return False
    return True


def rows_of(unit: Unit, mlp: MLP, seen: Seen) -> list[Tensor]:
    """What one MLP of a unit read in a run: everything, or what an expert was routed; ``[row d_model]`` each."""
    reads = seen.inputs.get(unit.reads, [])
    if not unit.site.experts:
        return [read.flatten(0, -2) for read in reads]
    number = unit.mlps.index(mlp)
    rows = []
    for read, routes in zip(reads, seen.routes[unit.reads], strict=True):
        if routes:
            rows.append(read[(routes[0] == number).any(-1)])
        else:
            rows.append(read.view(len(unit.mlps), -1, read.shape[-1])[number])
    return rows
