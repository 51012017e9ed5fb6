"""What is explained: a number made of the logits at one position, or of what passes hook points inside a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.twin.prompt import described, one_token, position_in
from allheads.twin.twin import TwinBridge

Function: TypeAlias = "Callable[[Tensor, Mapping[str, Tensor]], Tensor]"


@dataclass(frozen=True)
class Metric:
    """A number at one ``position``: ``function(logits, activations)``.

    It is read out of the logits ``[1 pos d_vocab]`` (``layer`` is None), or inside a layer, out of the activations at
    ``hook_points``.
    """

    name: str
    position: int
    function: Function
    layer: int | None = None
    hook_points: tuple[str, ...] = ()

    def of(self, logits: Float[Tensor, "1 pos d_vocab"], activations: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Its value. Raises `AllHeadsError` if the function gives something else than one number."""
        value = self.function(logits, activations)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise AllHeadsError("a target that is one number", described(value), "Return a scalar tensor.")
        return value.reshape(())

    @classmethod
    def of_logits(cls, name: str, position: int, weights: Float[Tensor, " d_vocab"]) -> Metric:
        """A linear one: ``weights @ logits`` at a position."""
        return cls(name, position, lambda logits, _: logits[0, position] @ weights.to(logits))


#: A token, a pair (for, against), weights over the vocabulary, a function of the logits at one position, or a `Metric`
#: with a name and a position of its own.
Target: TypeAlias = "str | int | tuple[str | int, str | int] | Tensor | Callable[[Tensor], Tensor] | Metric"


def metric_of(twin: TwinBridge, target: Target, position: int, length: int) -> Metric:
    """The metric that a target names, at a position of a prompt of this length.

    Raises `AllHeadsError` for text that is not one token, ids outside the vocabulary, a pair of one and the same, and
    positions outside the prompt.
    """
    if isinstance(target, Metric):
        position_in(length, target.position)
        return target
    at = position_in(length, position)
    if isinstance(target, Tensor):
        if target.shape != (twin.cfg.d_vocab_out,) or not target.is_floating_point():
            raise AllHeadsError(f"weights [{twin.cfg.d_vocab_out}]", described(target), "One weight for each token.")
        return Metric.of_logits("weights", at, target)
    if isinstance(target, tuple) and len(target) == 2:
        (plus, plus_name), (minus, minus_name) = (one_token(twin, token) for token in target)
        if plus == minus:
            raise AllHeadsError("two different tokens", f"{plus_name} twice", "Name one for and one against.")
        return Metric.of_logits(f"{plus_name} - {minus_name}", at, _weights(twin, {plus: 1.0, minus: -1.0}))
    if callable(target):
        return Metric(getattr(target, "__name__", "function"), at, lambda logits, _: target(logits[0, at]))
    token, name = one_token(twin, target)
    return Metric.of_logits(name, at, _weights(twin, {token: 1.0}))


def _weights(twin: TwinBridge, entries: dict[int, float]) -> Tensor:
    weights = torch.zeros(twin.cfg.d_vocab_out, dtype=torch.float64, device=twin.cfg.device)
    for token, weight in entries.items():
        weights[token] = weight
    return weights
