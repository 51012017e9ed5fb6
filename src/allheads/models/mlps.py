"""Reading MLPs by kind, and putting a bank of heads in their place.

Three kinds are understood: plain (``out(f(in(x)))``), gated (``out(f(gate(x)) * in(x))``) and containerless, where
the parts of a plain MLP sit in the layer itself (OPT). What a module computes is not believed from its name: the
activation is recognised by its values, and `check` compares our formula with the module in every layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import GatedMLPBridge, MLPBridge
from transformers.pytorch_utils import Conv1D

from allheads.banks.bank import HeadBank
from allheads.banks.evaluate import Evaluation
from allheads.errors import AllHeadsError
from allheads.theory.activations import ACTIVATIONS, Activation
from allheads.theory.gates import GateSum

#: Where modules keep their activation function.
_ACTIVATION_ATTRIBUTES = ("act_fn", "act", "activation_fn", "activation", "intermediate_act_fn")


@dataclass(frozen=True)
class MLP:
    """One MLP of a model, read: TransformerLens orientations, views of the model's own weights."""

    layer: int
    container: nn.Module
    names: dict[str, str]
    containerless: bool
    activation: Activation
    activation_name: str

    @property
    def gated(self) -> bool:
        """Is there a gate beside the value projection?"""
        return "gate" in self.names

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the projections."""
        return next(self.container.parameters()).dtype

    def weight(self, role: str) -> Float[Tensor, "fan_in fan_out"] | None:
        """``W_in, W_gate [d_model d_mlp]`` or ``W_out [d_mlp d_model]``; None for an absent gate."""
        if role not in self.names:
            return None
        module = self.container.get_submodule(self.names[role])
        weight = module.get_parameter("weight")
        return weight if isinstance(module, Conv1D) else weight.T

    def bias(self, role: str) -> Float[Tensor, " fan_out"] | None:
        """The bias of a projection, if it has one."""
        if role not in self.names:
            return None
        bias = self.container.get_submodule(self.names[role]).bias
        return bias if isinstance(bias, Tensor) else None

    def tensors(self) -> dict[str, Tensor | None]:
        """Weights and biases under the names that `HeadBank` takes."""
        return {
            "W_in": self.weight("in"),
            "b_in": self.bias("in"),
            "W_gate": self.weight("gate"),
            "b_gate": self.bias("gate"),
            "W_out": self.weight("out"),
            "b_out": self.bias("out"),
        }

    def heads(self, gates: GateSum, evaluation: Evaluation = "closed") -> HeadBank:
        """The same neurons as heads with these gates, over the same weights."""
        tensors: dict[str, Any] = self.tensors()
        return HeadBank(gates=gates, evaluation=evaluation, **tensors)

    def reference(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The model's own modules, as a function of the stream, in this dtype: a copy where it is not theirs."""
        container: Any = self.container if dtype == self.dtype else copy.deepcopy(self.container).to(dtype)
        if not self.containerless:
            return container
        first, last = (container.get_submodule(self.names[role]) for role in ("in", "out"))
        activation = getattr(container, self.activation_name)
        return lambda x: last(activation(first(x)))

    def install(self, body: nn.Module, bank: HeadBank) -> None:
        """Put the bank where the model calls its MLP."""
        if self.containerless:
            # The layer calls in, activation, out one after the other: the bank answers for all three.
            setattr(self.container, self.names["in"], bank)
            setattr(self.container, self.activation_name, nn.Identity())
            setattr(self.container, self.names["out"], nn.Identity())
            return
        for module in body.modules():
            for name, child in module.named_children():
                if child is self.container:
                    setattr(module, name, bank)


def read_mlps(source: TransformerBridge, body: nn.Module) -> list[MLP]:
    """Every MLP of the model, checked; ``body`` is the source's network without its bridge.

    Raises `AllHeadsError` naming the layer, before anything is changed, if an MLP is of another kind, its
    activation is not known, or a weight is not finite.
    """
    mlps = [_read(source, body, layer) for layer in range(len(source.blocks))]
    for mlp in mlps:
        check(mlp)
    return mlps


def _read(source: TransformerBridge, body: nn.Module, layer: int) -> MLP:
    block = source.blocks[layer]
    component: Any = getattr(block, "mlp", None)
    if type(component) not in (MLPBridge, GatedMLPBridge) or not {"in", "out"} <= set(component.submodules):
        raise AllHeadsError(
            "a plain or gated MLP in every layer",
            f"{type(component).__name__} in layer {layer} of {source.cfg.architecture}",
            "This kind of layer is not supported yet.",
        )
    containerless = component.name is None
    path = block.name if containerless else f"{block.name}.{component.name}"
    container = body.get_submodule(path)
    name, function = _find_activation(container, layer)
    names = {role: str(sub.name) for role, sub in component.submodules.items() if role in ("in", "gate", "out")}
    activation = recognise(function, layer)
    if activation.squared and "gate" in names:
        raise AllHeadsError("a gate that grows linearly", f"{activation.name} in layer {layer}", "Not supported yet.")
    return MLP(layer, container, names, containerless, activation, name)


def _find_activation(container: nn.Module, layer: int) -> tuple[str, Callable[[Tensor], Tensor]]:
    for name in _ACTIVATION_ATTRIBUTES:
        function = getattr(container, name, None)
        if callable(function):
            return name, function
    raise AllHeadsError(
        f"an activation function under one of {', '.join(_ACTIVATION_ATTRIBUTES)}",
        f"a {type(container).__name__} without one in layer {layer}",
        "This kind of MLP is not supported yet.",
    )


def recognise(function: Callable[[Tensor], Tensor], layer: int = 0) -> Activation:
    """The known activation with the same values in float64 on [-12, 12].

    >>> recognise(nn.GELU(approximate="tanh")).name
    'gelu_tanh'
    """
    grid = torch.linspace(-12.0, 12.0, 4001, dtype=torch.float64)
    with torch.no_grad():
        values = function(grid)
        for activation in ACTIVATIONS.values():
            # gelu_fast is 3e-12 away from gelu_tanh; equal formulas agree to rounding.
            if torch.allclose(values, activation(grid), rtol=1e-14, atol=1e-14):
                return activation
    raise AllHeadsError(
        f"one of the activations {', '.join(ACTIVATIONS)}",
        f"{getattr(function, '__name__', type(function).__name__)} in layer {layer}, which has other values",
        "This activation is not supported yet.",
    )


def check(mlp: MLP) -> None:
    """Compare our formula with the model's module on input that spans [-6, 6] and more in the preactivations."""
    tensors = {name: tensor.detach() for name, tensor in mlp.tensors().items() if tensor is not None}
    for name, tensor in tensors.items():
        # A sum is finite if all terms are, and much cheaper to test.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise AllHeadsError(
                "finite weights",
                f"NaN or infinity in {name} of layer {mlp.layer}",
                "Repair or reload the model.",
            )
    generator = torch.Generator().manual_seed(mlp.layer)
    x = torch.randn(8, tensors["W_in"].shape[0], generator=generator).to(tensors["W_in"])
    x = x * (12.0 / (x @ tensors.get("W_gate", tensors["W_in"])).abs().max().clamp_min(1e-6))
    with torch.no_grad():
        ours, theirs = _formula(mlp, tensors, x), mlp.reference(x.dtype)(x)
    allowed = max(1e-4, 16 * torch.finfo(mlp.dtype).eps) * float(theirs.abs().max())
    off = float((ours - theirs).abs().max())
    if not off <= allowed:
        raise AllHeadsError(
            "an MLP that computes out(f(in(x))) or out(f(gate(x)) * in(x))",
            f"layer {mlp.layer} with outputs {off:.1e} away from that formula",
            "This kind of MLP is not supported yet.",
        )


def _formula(mlp: MLP, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    zero = x.new_zeros(())
    value = x @ tensors["W_in"] + tensors.get("b_in", zero)
    if mlp.gated:
        post = mlp.activation(x @ tensors["W_gate"] + tensors.get("b_gate", zero)) * value
    else:
        post = mlp.activation(value)
    return post @ tensors["W_out"] + tensors.get("b_out", zero)
