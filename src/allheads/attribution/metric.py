"""What is explained: a number made of the outputs at one position, or of what passes hook points inside a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.twin.prompt import described, one_token, position_in
from allheads.twin.twin import TwinBridge

Function: TypeAlias = "Callable[[Tensor, Mapping[str, Tensor]], Tensor]"


@dataclass(frozen=True)
class Metric:
    """A number: ``function(outputs, activations)``.

    It is read out of the network's outputs ``[1 pos out]`` at one ``position``, or inside a layer, out of the
    activations at ``hook_points``: then ``stream`` is the hook point of the stream which that reads. ``entries`` are
    the tokens or classes that were named, for and against.
    """

    name: str
    position: int
    function: Function
    stream: str | None = None
    hook_points: tuple[str, ...] = ()
    entries: tuple[int, ...] = ()

    def of(self, outputs: Float[Tensor, "1 pos out"], activations: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Its value. Raises `AllHeadsError` if the function gives something else than one number."""
        value = self.function(outputs, activations)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise AllHeadsError("a target that is one number", described(value), "Return a scalar tensor.")
        return value.reshape(())

    @classmethod
    def of_outputs(cls, name: str, position: int, weights: Float[Tensor, " out"]) -> Metric:
        """A linear one: ``weights @ outputs`` at a position."""
        return cls(name, position, lambda outputs, _: outputs[0, position] @ weights.to(outputs))


#: The metric of a question whose own metrics come later.
NOTHING = Metric("nothing", 0, lambda outputs, _: outputs.new_zeros(()))


@dataclass(frozen=True)
class OutputShape:
    """What a network gives: logits over ``tokens`` or ``classes``, or the ``dimensions`` of a hidden state."""

    kind: Literal["tokens", "classes", "dimensions"]
    length: int
    width: int


#: A token or a class, a pair (for, against), weights over all outputs, a function of the outputs at one position, or a
#: `Metric` with a name and a position of its own.
Target: TypeAlias = "str | int | tuple[str | int, str | int] | Tensor | Callable[[Tensor], Tensor] | Metric"


def metric_of(twin: TwinBridge, target: Target, position: int, outputs: OutputShape) -> Metric:
    """The metric that a target names, at a position of the outputs.

    Raises `AllHeadsError` for text that is not one token, ids outside the vocabulary, a pair of one and the same,
    targets of another kind than the outputs, and positions outside them.
    """
    if isinstance(target, Metric):
        position_in(outputs.length, target.position)
        return target
    at = position_in(outputs.length, position)
    if isinstance(target, Tensor):
        if target.shape != (outputs.width,) or not target.is_floating_point():
            remedy = f"One weight for each of the {outputs.kind}."
            raise AllHeadsError(f"weights [{outputs.width}]", described(target), remedy)
        return Metric.of_outputs("weights", at, target)
    if isinstance(target, tuple) and len(target) == 2:
        (plus, plus_name), (minus, minus_name) = (_entry(twin, entry, outputs) for entry in target)
        if plus == minus:
            raise AllHeadsError(f"two different {outputs.kind}", f"{plus_name} twice", "Name one for and one against.")
        weights = _weights(twin, outputs.width, {plus: 1.0, minus: -1.0})
        return replace(Metric.of_outputs(f"{plus_name} - {minus_name}", at, weights), entries=(plus, minus))
    if callable(target):
        return Metric(getattr(target, "__name__", "function"), at, lambda outputs, _: target(outputs[0, at]))
    entry, name = _entry(twin, target, outputs)
    return replace(Metric.of_outputs(name, at, _weights(twin, outputs.width, {entry: 1.0})), entries=(entry,))


def _entry(twin: TwinBridge, target: object, outputs: OutputShape) -> tuple[int, str]:
    """The number of a token or class, and its name in a sentence."""
    if outputs.kind == "tokens":
        return one_token(twin, target)
    if outputs.kind == "dimensions":
        raise AllHeadsError(
            f"a direction [{outputs.width}] or a function of the last hidden state, which is all this model gives",
            described(target),
            "There are no tokens or classes to name.",
        )
    names: dict[int, str] = getattr(getattr(twin.original_model, "config", None), "id2label", None) or {}
    numbers = {name: number for number, name in names.items()}
    number = numbers.get(target, -1) if isinstance(target, str) else target
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < outputs.width:
        some = ", ".join(repr(name) for name in list(numbers)[:3])
        raise AllHeadsError(f"a class from 0 to {outputs.width - 1}", described(target), f"By name: {some} ...")
    return number, repr(names.get(number, str(number)))


def _weights(twin: TwinBridge, width: int, entries: dict[int, float]) -> Tensor:
    weights = torch.zeros(width, dtype=torch.float64, device=twin.cfg.device)
    for entry, weight in entries.items():
        weights[entry] = weight
    return weights
