"""Reading a stack of experts: three-dimensional weights, one slice an expert.

Called as ``experts(rows, top_k_index, top_k_weights)``, the router's weight multiplies what an expert writes; called
with rows alone, those are sorted by expert and scaled before. Which axis is the input, and which half the gate, is
found by running expert 0 on its own; every other expert is held against the same formula.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.heads.views import WeightView
from allheads.models.find_mlps import MLPLocation
from allheads.models.formulas import (
    CLOSE,
    ROWS,
    SAMPLES,
    MLPFormula,
    ProjectionSlice,
    Split,
    formulas,
    halves,
    in_dtype,
    shows_activation,
    spanned,
)
from allheads.models.mlps import MLP, ReplacedMLP, check_finite
from allheads.models.observe import Activations

#: Whether the weights of a stack are ``[fan_in fan_out]``, and what its experts compute.
Layout = tuple[bool, MLPFormula]


def routed(module: nn.Module) -> bool:
    """Is the stack called with the expert of every row?"""
    return len(inspect.signature(module.forward).parameters) >= 3


def read_experts(found: MLPLocation, module: nn.Module) -> ReplacedMLP:
    """Every expert of a stack as an MLP of its own, over slices of the stack's weights."""
    check_finite(module, found.location)
    count = _count(module)
    exact = in_dtype(module, torch.promote_types(next(module.parameters()).dtype, torch.float32))
    layout = next((layout for layout in _layouts(module) if _fits(layout, exact, 0)), None)
    misfits = (number for number in range(count) if layout is None or not _fits(layout, exact, number))
    wrong = next(misfits, None)
    if layout is not None and wrong is None and not shows_activation(module, layout[1].activation):
        wrong = None if _fits(layout, exact, 0, SAMPLES) else 0
    if layout is None or wrong is not None:
        raise AllHeadsError(
            "experts that compute out(f(gate(x)) * in(x)) or out(f(in(x)))",
            f"{type(module).__name__} in {found.location.stem}, whose expert {wrong} fits no such formula"
            " (a clamp, a shifted value, or another activation)",
            "This kind of expert is not supported yet.",
        )
    return ReplacedMLP(found, [_expert(found, module, layout, number) for number in range(count)])


def _expert(found: MLPLocation, module: nn.Module, layout: Layout, number: int) -> MLP:
    def reference(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        copied = _copied(module, dtype)
        return lambda x: run_expert(copied, number, x)

    transposed, formula = layout
    location = replace(found.location, name=f"{found.location.name}.{number}", expert=number)
    return MLP(location, formula.views(_projections(module, number, transposed)), formula.activation, reference)


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
    count = _count(module)
    sorted_rows = torch.zeros(count, *rows.shape).to(rows)
    sorted_rows[number] = rows
    return module(sorted_rows.flatten(0, 1)).view(count, *x.shape)[number]


def _count(module: nn.Module) -> int:
    return next(p for p in module.parameters(recurse=False) if p.ndim == 3).shape[0]


def _projections(module: nn.Module, number: int, transposed: bool) -> dict[str, tuple[WeightView, WeightView]]:
    """Weight and bias of one expert's first and last projection."""

    def views(ndim: int, view: Callable[[Tensor], Tensor]) -> list[WeightView]:
        return [WeightView(module, name, view) for name, p in module.named_parameters(recurse=False) if p.ndim == ndim]

    def weight(stack: Tensor) -> Tensor:
        return stack[number] if transposed else stack[number].T

    weights = views(3, weight)
    biases = views(2, lambda stack: stack[number]) or [WeightView(module, "bias")] * 2
    return {"in": (weights[0], biases[0]), "out": (weights[1], biases[1])}


def _layouts(module: nn.Module) -> Iterator[Layout]:
    """Every layout that the shapes allow."""
    for transposed in (False, True):
        first, last = (weight.read() for weight, _ in _projections(module, 0, transposed).values())
        assert first is not None and last is not None
        (fan_in, width), (inner, fan_out) = first.shape, last.shape
        if fan_in == fan_out and width in (inner, 2 * inner):
            splits: list[Split] = [(ProjectionSlice("in"), None)] if width == inner else halves("in", inner)
            yield from ((transposed, formula) for formula in formulas(splits, "out"))


def _fits(layout: Layout, module: nn.Module, number: int, samples: int = 0) -> bool:
    """Does an expert write what the formula says, for so many preactivations in each span?"""
    transposed, formula = layout
    projections = _projections(module, number, transposed).values()
    (first, bias), (last, bias_out) = ((weight.read(), bias.read()) for weight, bias in projections)
    assert first is not None and last is not None
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(max(ROWS, samples // first.shape[1]), len(first), generator=generator).to(first)
    with torch.no_grad():
        rows = spanned(x, [x @ first])
        theirs = run_expert(module, number, rows)
        read = rows @ first + (0.0 if bias is None else bias)
        ours = formula.neurons({"in": read}) @ last + (0.0 if bias_out is None else bias_out)
        error, size = (values.abs().amax((1, 2)) for values in (ours - theirs, theirs))
    return bool((error <= CLOSE * size).all())


def rows_of(replaced: ReplacedMLP, mlp: MLP, activations: Activations) -> list[Tensor]:
    """What one of the MLPs read in a run: everything, or what an expert was routed; ``[row d_model]`` each."""
    reads = activations.inputs.get(replaced.reads, [])
    if not replaced.site.experts:
        return [read.flatten(0, -2) for read in reads]
    number = replaced.mlps.index(mlp)
    rows = []
    for read, routes in zip(reads, activations.routes[replaced.reads], strict=True):
        if routes:
            rows.append(read[(routes[0] == number).any(-1)])
        else:
            rows.append(read.view(len(replaced.mlps), -1, read.shape[-1])[number])
    return rows
