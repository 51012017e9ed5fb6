"""A random model with input for it, and the error that says why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from allheads import AllHeadsError


@dataclass(frozen=True)
class Sample:
    """The smallest random model of a family.

    ``inputs`` are keyword arguments for this and any other bridge of the architecture. ``generates`` says that
    ``bridge.original_model.generate`` works, with and without a cache; ``output`` what `run` gives.
    """

    name: str
    bridge: TransformerBridge
    inputs: dict[str, Any]
    generates: bool
    output: Literal["logits", "last_hidden_state"]

    def run(self, bridge: TransformerBridge) -> Float[Tensor, "batch *positions out"]:
        """What a bridge of this architecture gives for the inputs."""
        with torch.no_grad():
            return bridge(**self.inputs)


class NotBuilt(AllHeadsError):  # noqa: N818 - it says what happened
    """A family that is known and has no sample, with the reason in a sentence.

    >>> raise NotBuilt("DreamModel", "its code would have to be downloaded")
    Traceback (most recent call last):
    ...
    allheads_labs.zoo.sample.NotBuilt: Expected a family that can be built from a configuration, got \
DreamModel: its code would have to be downloaded. Take another of zoo.names().
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            "a family that can be built from a configuration", f"{name}: {reason}", "Take another of zoo.names()."
        )
        self.name, self.reason = name, reason
