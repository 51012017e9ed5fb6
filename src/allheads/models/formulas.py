r"""What an MLP computes, and which projection does what: found by running it, since names and forward code differ.

The module is run on random input, and what every projection reads and writes is looked at. Those that read the
input are the value and the gate, or both in one (joint); the one that runs last writes the output, and what it reads
must be, entry by entry,

    f(s t)          plain          f(s g) u        gated

for a known activation f. A factor s on the preactivation and one on the output are measured; a residual that the
module adds itself is taken off. Preactivations span [-12, 12], and are then blown up to thousands, where a clamp or
a learned slope would show.

Sampling refutes and never proves. What is assumed: the module treats all positions alike, whatever batch and length
are, as far as inputs of three shapes show; and between the sampled preactivations, 2^17 random ones of the activation
function where a module has one beside its projections, or else of its neurons, the activation does what it does at
them. A bump a thousandth wide is met by several samples, one of a millionth would be missed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from allheads.errors import AllHeadsError
from allheads.gates.activations import ACTIVATIONS, Activation
from allheads.heads.views import WeightView
from allheads.models.observe import Activations, watching

#: Input rows at least, and the largest preactivation of each of the two probes.
ROWS, SPANS = 8, (12.0, 4000.0)
#: Samples of an activation function, or of the neurons of a module that shows none.
SAMPLES = 2**17
#: Where modules keep their activation function.
ACTIVATION_ATTRIBUTES = ("act_fn", "act", "activation_fn", "activation", "intermediate_act_fn", "hidden_act")
#: Relative agreement asked for; formulas of activations differ by 4e-4 and more, gelu_fast excepted.
CLOSE = 2e-5
#: Roundings of an activation function, in units of its argument's.
_ULPS = 4


@dataclass(frozen=True)
class ProjectionSlice:
    """A projection, or a slice of its outputs: ``weight[:, start::step][:, :count]`` in TransformerLens orientation."""

    name: str
    start: int = 0
    step: int = 1
    count: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The slice of a tensor whose last axis is the projection's outputs; a view."""
        return tensor[..., self.start :: self.step][..., : self.count]


#: Which slices are the value and the gate; there is no gate in a plain MLP.
Split = tuple[ProjectionSlice, ProjectionSlice | None]


@dataclass(frozen=True)
class MLPFormula:
    """What an MLP computes: ``scale_out * out(f(scale_in * gate) * value)``, or ``scale_out * out(f(value))``."""

    value: ProjectionSlice
    gate: ProjectionSlice | None
    out: str
    activation: Activation
    scale_in: float = 1.0
    scale_out: float = 1.0
    residual: bool = False

    def neurons(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """What ``out`` reads, from what every projection writes."""
        value = self.value.of(outputs[self.value.name])
        if self.gate is None:
            return self.activation(self.scale_in * value)
        return self.activation(self.scale_in * self.gate.of(outputs[self.gate.name])) * value

    def views(self, projections: Mapping[str, tuple[WeightView, WeightView]]) -> dict[str, WeightView]:
        """``W_in``, ``W_gate``, ``W_out`` and their biases, from weight and bias by projection."""
        found: dict[str, WeightView] = {}
        for name, part in (("in", self.value), ("gate", self.gate), ("out", ProjectionSlice(self.out))):
            if part is not None:
                weight, bias = projections[part.name]
                found |= {f"W_{name}": weight.then(part.of), f"b_{name}": bias.then(part.of)}
        if self.scale_out != 1.0:
            found["b_out"] = found["b_out"].then(lambda bias: self.scale_out * bias)
        return found


def find_formula(module: nn.Module, d_model: int, likely: Sequence[MLPFormula] = ()) -> MLPFormula | None:
    """What ``module`` computes, the ``likely`` formulas tried first; None if it is something else."""
    # Some add the stream themselves.
    residual = "residual" in inspect.signature(module.forward).parameters
    runs = _run_on_spans(module, d_model, residual)
    if runs is None:
        return None
    first, run = runs
    formulas = (f for f in chain(likely, _candidates(run, residual)) if f.residual == residual and _fits(f, run))
    formula = next(formulas, None)
    if formula is None or not _fits(formula, first) or not _ignores_shape(module, run, residual):
        return None
    if shows_activation(module, formula.activation):
        return formula
    # There is no function to sample on its own, or another one: then the neurons are sampled as often.
    dense = _run_on_spans(module, d_model, residual, SAMPLES)
    return formula if dense is not None and _fits(formula, dense[1]) else None


def shows_activation(module: nn.Module, activation: Activation) -> bool:
    """Has a module an activation function beside its projections, with the values of this one?"""
    functions = [getattr(module, name, None) for name in ACTIVATION_ATTRIBUTES]
    return any(callable(function) and has_values(function, activation) for function in functions)


def has_values(function: Callable[[Tensor], Tensor], activation: Activation) -> bool:
    """Has a function the values of an activation in float64: at random points, near and far, in tensors of any shape?

    >>> has_values(nn.GELU(approximate="tanh"), ACTIVATIONS["gelu_tanh"])
    True
    >>> has_values(lambda t: t.relu() if t.shape[-1] > 100 else t, ACTIVATIONS["relu"])
    False
    """
    try:
        with torch.no_grad():
            for points, values in _samples(activation):
                given = function(points.clone())  # some write in place
                # gelu_fast is 3e-12 away from gelu_tanh; equal formulas agree to rounding.
                if not (torch.equal(given, values) or torch.allclose(given, values, rtol=1e-14, atol=1e-14)):
                    return False
    except Exception:
        # Whatever cannot be called with numbers, for whatever reason, is something else.
        return False
    return True


@cache
def _samples(activation: Activation) -> list[tuple[Tensor, Tensor]]:
    """Points, most of them random, and an activation's values there: many, and few in tensors of several shapes."""
    generator = torch.Generator().manual_seed(0)
    near, far = (
        span * (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)
        for span, count in zip(SPANS, (SAMPLES, SAMPLES // 64), strict=True)
    )
    t = torch.cat([torch.linspace(-SPANS[0], SPANS[0], 4001, dtype=torch.float64), near, far])
    shapes = ((-1,), (1, -1), (64, 16, -1), (-1, 8, 1), (1, 1), (1,))
    return [
        (points, activation(points))
        for points in (t, *(near[: 4096 if -1 in shape else 1].view(shape) for shape in shapes))
    ]


def formulas(splits: Iterable[Split], out: str) -> Iterator[MLPFormula]:
    """A formula for every split and every known activation."""
    for value, gate in splits:
        for activation in ACTIVATIONS.values():
            yield MLPFormula(value, gate, out, activation)


def halves(name: str, width: int) -> list[Split]:
    """How one projection may hold value and gate: one behind the other, or in turn."""
    first, second = ProjectionSlice(name, 0, 1, width), ProjectionSlice(name, width, 1, width)
    even, odd = ProjectionSlice(name, 0, 2), ProjectionSlice(name, 1, 2)
    return [(second, first), (first, second), (odd, even), (even, odd)]


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


def call(module: nn.Module, x: Tensor, residual: bool) -> Tensor:
    """What the module adds to the stream; a tuple's first entry is meant."""
    out = module(x, torch.zeros_like(x)) if residual else module(x)
    return out[0] if isinstance(out, tuple) else out


def spanned(x: Float[Tensor, "row d_model"], read: Iterable[Tensor]) -> Float[Tensor, "span row d_model"]:
    """The rows scaled for each of `SPANS`, where that is the largest preactivation; ``read`` is what they give as is.

    Together, because the time goes into reading the weights.
    """
    largest = max(max(float(preactivations.abs().max()) for preactivations in read), 1e-6)
    return torch.stack([x * (span / largest) for span in SPANS])


def _run_on_spans(
    module: nn.Module, d_model: int, residual: bool, samples: int = 0
) -> tuple[Activations, Activations] | None:
    """A run over random rows, in two texts, and one in which they are there for each of `SPANS`, in one text.

    There, the span is the largest preactivation. None if nothing reads x. The module itself is under the path ``""``;
    every projection was called once. There are so many preactivations in each span, and no fewer than `ROWS` rows.
    """
    parameter = next(module.parameters())
    count = ROWS * max(1, -(-samples // (ROWS * max(p.shape[0] for p in module.parameters()))))
    x = torch.randn(1, count, d_model, generator=torch.Generator().manual_seed(samples)).to(parameter)
    # Rows of all sizes, so that preactivations are spread over the span.
    x = x * (torch.arange(count, 0, -1).to(x) / count)[:, None]
    first = _run(module, x.view(2, -1, d_model), residual)
    readers = _readers(first)
    if not readers:
        return None
    run = _run(module, spanned(x[0], readers.values()).view(1, -1, d_model), residual)
    return (first, run) if all(len(calls) == 1 for calls in run.inputs.values()) else None


def _ignores_shape(module: nn.Module, run: Activations, residual: bool) -> bool:
    """Does the module write the same for these rows as texts of one position?"""
    x, out = run.inputs[""][0], run.outputs[""][0]
    with torch.no_grad():
        return _close(call(module, x.transpose(0, 1), residual), out)


def _run(module: nn.Module, x: Tensor, residual: bool) -> Activations:
    projections = [name for name, child in module.named_modules() if is_projection(child)]
    with torch.no_grad(), watching(module, ["", *projections]) as run:
        call(module, x, residual)
    return run


def _readers(run: Activations) -> dict[str, Tensor]:
    """The projections that read what the module reads, with what they write."""
    x = run.inputs[""][0]
    return {
        name: run.outputs[name][0]
        for name, (read, *_) in run.inputs.items()
        if name and read.numel() == x.numel() and torch.equal(read.reshape(x.shape), x)
    }


def _last(run: Activations) -> str:
    """The projection that ran last; the module itself ended after it."""
    return [name for name in run.inputs if name][-1]


def _candidates(run: Activations, residual: bool) -> Iterator[MLPFormula]:
    """Every formula that the shapes and factors of one run allow."""
    readers, last = _readers(run), _last(run)
    width = run.inputs[last][0].shape[-1]
    scale_out = _factor(run.outputs[""][0], run.outputs[last][0])
    if scale_out is None or last in readers:
        return
    splits: list[Split] = []
    names, widths = list(readers), [out.shape[-1] for out in readers.values()]
    if widths == [width]:
        splits = [(ProjectionSlice(names[0]), None)]
    elif widths == [2 * width]:
        splits = halves(names[0], width)
    elif len(readers) == 2:
        first, second = map(ProjectionSlice, names)
        splits = [(second, first), (first, second)]
    for formula in formulas(splits, last):
        if formula.gate is not None or formula.activation.name != "linear":
            yield from _scaled(replace(formula, scale_out=scale_out, residual=residual), run)


def _scaled(formula: MLPFormula, run: Activations) -> Iterator[MLPFormula]:
    """The formula as it is, and with the factor that large positive preactivations show."""
    yield formula
    if formula.gate is None:
        return
    gate, value = (part.of(run.outputs[part.name][0]) for part in (formula.gate, formula.value))
    open_ = gate > 0.5 * gate.max()
    ratio = (run.inputs[formula.out][0] / (gate * value))[open_]
    factor = float(ratio.median())
    if abs(factor - 1.0) > 1e-3:
        yield replace(formula, scale_in=factor)


def _fits(formula: MLPFormula, run: Activations) -> bool:
    """Do the parts read x, is what the last projection reads the formula, and what comes out what that writes?"""
    outputs, readers = {name: out for name, (out, *_) in run.outputs.items()}, _readers(run)
    parts = [part for part in (formula.value, formula.gate) if part is not None]
    if _last(run) != formula.out or any(part.name not in readers for part in parts):
        return False
    read, neurons = run.inputs[formula.out][0], formula.neurons(outputs)
    # An activation that is nearly 0 has the rounding of its argument: 1 + erf and the like cancel.
    noise = torch.stack([part.of(outputs[part.name]).abs() for part in parts]).double().prod(0)
    noise *= _ULPS * torch.finfo(read.dtype).eps
    return _close(read, neurons, noise) and _close(outputs[""], formula.scale_out * outputs[formula.out])


def _close(a: Tensor, b: Tensor, noise: Tensor | None = None) -> bool:
    """Do they agree, on each of `SPANS`, up to what rounding may do to each of them?"""
    if a.numel() != b.numel():
        return False
    a, b = (tensor.double().reshape(len(SPANS), -1) for tensor in (a, b))
    allowed = CLOSE * (b.abs() + 1e-2 * b.abs().amax(1, keepdim=True))
    return bool(((a - b).abs() <= allowed + (0.0 if noise is None else noise.reshape(allowed.shape))).all())


def _factor(out: Tensor, written: Tensor) -> float | None:
    """The constant that makes one the other, 1 where that is close."""
    if out.numel() != written.numel():
        return None
    a, b = out.double().flatten(), written.double().flatten()
    factor = float((a @ b) / (b @ b).clamp_min(1e-300))
    return 1.0 if abs(factor - 1.0) < 1e-6 else factor
