"""Activations by name: the one way in which hook points are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge
from allheads.models.observe import Inputs, run_bridge

#: Where a stream begins: tokens, learned positions, types of segments; and those of a decoder beside an encoder.
EMBEDDINGS = (
    "embed.hook_out",
    "pos_embed.hook_out",
    "token_type_embed.hook_out",
    "decoder_embed.hook_out",
    "decoder_pos_embed.hook_out",
)


@contextmanager
def capturing(model: TransformerBridge, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what passes these hook points while the model runs: the last value of each, as it is in the graph.

    Raises `AllHeadsError` for a hook point that the model does not have.
    """
    wanted = list(dict.fromkeys(names))
    require_hook_points(model, wanted)
    activations: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., Tensor]:
        def keep(value: Tensor, hook: object) -> Tensor:
            activations[name] = value
            # Returned, because a hook point may show a rearranged tensor: only what comes back is in the graph.
            return value

        return keep

    with model.hooks(fwd_hooks=[(name, keeper(name)) for name in wanted]):
        yield activations


def captured(
    model: TransformerBridge, inputs: str | Int[Tensor, "batch pos"] | Inputs, names: Iterable[str]
) -> dict[str, Tensor]:
    """Activations of one run, by hook point, without gradients. Raises `AllHeadsError` as `capturing` does."""
    with torch.no_grad(), capturing(model, names) as activations:
        if isinstance(inputs, Mapping):
            run_bridge(model, inputs)
        else:
            model(inputs)
    return activations


def require_hook_points(model: TransformerBridge, names: Iterable[str]) -> None:
    """Raise `AllHeadsError` for the first hook point that a model does not have."""
    points = model.hook_dict
    if missing := [name for name in names if name not in points]:
        raise AllHeadsError(
            f"a model with the hook point {missing[0]}",
            f"{model.cfg.architecture} without it",
            "model.hook_dict lists those that it has.",
        )
