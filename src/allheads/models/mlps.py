"""Reading MLPs by kind: views of their weights, their activation, and the module itself as the referee.

===================  =================================================================================
kind                 what is called
===================  =================================================================================
plain, gated         a module of two or three projections
joint                a module whose gate and value are one projection
residual-taking      a module that is given the residual stream and adds it
containerless        no module: the parts sit in the layer, called one after the other
expert               one slice of a stack of three-dimensional weights (`allheads.models.experts`)
===================  =================================================================================

What a module computes is not believed from its name: see `allheads.models.formulas`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from allheads.errors import AllHeadsError
from allheads.gates.activations import ACTIVATIONS, Activation
from allheads.gates.gates import GateSum
from allheads.heads.bank import HeadBank
from allheads.heads.evaluate import Evaluation
from allheads.heads.views import WeightView
from allheads.models.find_mlps import MLPLocation
from allheads.models.formulas import (
    ACTIVATION_ATTRIBUTES,
    MLPFormula,
    ProjectionSlice,
    call,
    find_formula,
    has_values,
    in_dtype,
    input_size,
    is_projection,
)
from allheads.models.locations import Location


@dataclass(frozen=True)
class MLP:
    """One MLP of a model, read: TransformerLens orientations, views of the model's own weights.

    It computes ``scale_out * f(scale_in * g) u W_out`` and biases. ``reference`` gives the model's own modules, as a
    function of the stream, in a dtype: a copy where it is not theirs.
    """

    location: Location
    views: dict[str, WeightView]
    activation: Activation
    reference: Callable[[torch.dtype], Callable[[Tensor], Tensor]] = field(repr=False)
    scale_in: float = 1.0
    scale_out: float = 1.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """``W_in``, ``W_gate``, ``W_out`` and biases, as far as there are any."""
        read = {name: view.read() for name, view in self.views.items()}
        return {name: tensor for name, tensor in read.items() if tensor is not None}

    @property
    def gated(self) -> bool:
        """Is there a gate beside the value projection?"""
        return "W_gate" in self.views

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the projections."""
        return self.tensors["W_in"].dtype

    @property
    def query(self) -> tuple[Float[Tensor, "d_model d_mlp"], Float[Tensor, " d_mlp"] | None]:
        """The projection that the gates read, and its bias."""
        name = "gate" if self.gated else "in"
        return self.tensors[f"W_{name}"], self.tensors.get(f"b_{name}")

    @property
    def computed(self) -> Activation:
        """The activation with its factors: what a neuron applies to its preactivation."""
        return self.activation.stretched(self.scale_in, self.scale_out)

    def heads(self, gates: GateSum, evaluation: Evaluation = "closed") -> HeadBank:
        """The same neurons as heads with these gates, over the same weights."""
        return HeadBank(self.views, gates, evaluation)


@dataclass(frozen=True)
class ReplacedMLP:
    """What is replaced at one site: one MLP, or all experts of a stack."""

    site: MLPLocation
    mlps: list[MLP]
    residual: bool = False

    @property
    def paths(self) -> list[str]:
        """The module that is called, or its parts in the layer: the first, that reads, to the last, that writes."""
        path, inside = self.site.path, self.site.inside
        return [path] if inside is None else [f"{path}.{name}" for name in inside]

    @property
    def reads(self) -> str:
        """The path of the module that is called with what the MLP reads."""
        return self.paths[0]

    @property
    def writes(self) -> str:
        """The path of the module whose output is the MLP's."""
        return self.paths[-1]


def read_module(site: MLPLocation, module: nn.Module, earlier: list[MLPFormula]) -> ReplacedMLP:
    """A plain, gated, joint or residual-taking MLP. ``earlier`` formulas are tried first; a new one is added."""
    check_finite(module, site.location)
    exact = in_dtype(module, torch.promote_types(_dtype(module, site.location), torch.float32))
    d_model = input_size(module)
    formula = find_formula(exact, d_model, earlier)
    if formula is not None and (formula.scale_in, formula.scale_out) != (1.0, 1.0) and formula not in earlier:
        # Factors are measured: in float64, to its last digits.
        formula = find_formula(in_dtype(module, torch.float64), d_model)
    if formula is None:
        raise AllHeadsError(
            "an MLP that computes out(f(in(x))) or out(f(gate(x)) * in(x)) with a known activation",
            f"{type(module).__name__} in {site.location.stem}, whose numbers fit no such formula"
            f" ({_described(module)}): a clamp, sparsity, a norm inside, a mix of tokens, quantised projections,"
            " or another activation",
            f"This kind of MLP is not supported yet; f is one of {', '.join(ACTIVATIONS)}.",
        )
    _require_linear_gate(formula, site)
    if formula not in earlier:
        earlier.append(formula)
    parts = {part.name for part in (formula.value, formula.gate) if part is not None}
    views = formula.views(_projections(module, [*parts, formula.out]))

    def reference(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        return partial(call, in_dtype(module, dtype), residual=formula.residual)

    mlp = MLP(site.location, views, formula.activation, reference, formula.scale_in, formula.scale_out)
    return ReplacedMLP(site, [mlp], formula.residual)


def read_containerless(site: MLPLocation, layer: nn.Module) -> ReplacedMLP:
    """A containerless MLP: ``out(f(in(x)))`` or ``out(f(gate(x)) * in(x))``, whose activation is beside the first."""
    assert site.inside is not None
    parts = [layer.get_submodule(name) for name in site.inside]
    for part in parts:
        check_finite(part, site.location)
    owner, name = activation_of(site, layer)
    activation = activation_with_values(getattr(owner, name), site.location.stem)
    *gate, value, out = map(ProjectionSlice, site.inside)
    formula = MLPFormula(value, gate[0] if gate else None, out.name, activation)
    _require_linear_gate(formula, site)
    views = formula.views(_projections(layer, site.inside))

    def reference(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        first, *middle, last = (in_dtype(part, dtype) for part in parts)

        def run(x: Tensor) -> Tensor:
            neurons = getattr(owner, name)(first(x))
            return last(neurons * middle[0](x) if middle else neurons)

        return run

    return ReplacedMLP(site, [MLP(site.location, views, activation, reference)])


def _require_linear_gate(formula: MLPFormula, site: MLPLocation) -> None:
    if formula.activation.squared and formula.gate is not None:
        raise AllHeadsError(
            "a gate that grows linearly", f"{formula.activation.name} in {site.location.stem}", "Not supported yet."
        )


def activation_of(site: MLPLocation, layer: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds a containerless MLP's activation function, and its name there."""
    assert site.inside is not None
    owner = layer.get_submodule(site.inside[0].rpartition(".")[0]) if "." in site.inside[0] else layer
    for name in ACTIVATION_ATTRIBUTES:
        if callable(getattr(owner, name, None)):
            return owner, name
    raise AllHeadsError(
        f"an activation function under one of {', '.join(ACTIVATION_ATTRIBUTES)}",
        f"a {type(owner).__name__} without one in {site.location.stem}",
        "This kind of MLP is not supported yet.",
    )


def activation_with_values(function: Callable[[Tensor], Tensor], where: str = "it") -> Activation:
    """The known activation with the same values in float64, at random points near and far.

    >>> activation_with_values(nn.GELU(approximate="tanh")).name
    'gelu_tanh'
    """
    for activation in ACTIVATIONS.values():
        if has_values(function, activation):
            return activation
    raise AllHeadsError(
        f"one of the activations {', '.join(ACTIVATIONS)}",
        f"{getattr(function, '__name__', type(function).__name__)} in {where}, which has other values",
        "This activation is not supported yet.",
    )


def check_finite(module: nn.Module, location: Location) -> None:
    """Refuse NaN and infinity in the weights of an MLP."""
    for name, tensor in module.named_parameters():
        # A sum is finite if all terms are, and much cheaper to test.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise AllHeadsError(
                "finite weights", f"NaN or infinity in {name} of {location.stem}", "Repair or reload the model."
            )


def _dtype(module: nn.Module, location: Location) -> torch.dtype:
    dtypes = {p.dtype for p in module.parameters()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "none"
        raise AllHeadsError(
            "an MLP with floating-point weights of one dtype",
            f"{kinds} in {location.stem}",
            "Load the model unquantised, in one dtype.",
        )
    return next(iter(dtypes))


def _projections(module: nn.Module, names: Iterable[str]) -> dict[str, tuple[WeightView, WeightView]]:
    """Weight and bias of projections."""
    return {name: projection_views(module.get_submodule(name)) for name in names}


def projection_views(projection: nn.Module) -> tuple[WeightView, WeightView]:
    """Weight and bias of a projection, the weight as TransformerLens has it."""
    weight = WeightView(projection, "weight")
    return weight if isinstance(projection, Conv1D) else weight.then(_turned), WeightView(projection, "bias")


def _turned(weight: Tensor) -> Tensor:
    return weight.T


def _described(module: nn.Module) -> str:
    parts: list[Any] = [f"{name}: {type(child).__name__}" for name, child in module.named_modules() if name]
    return ", ".join(parts[:8]) if any(is_projection(child) for child in module.modules()) else "no linear projection"
