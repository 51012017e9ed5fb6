"""What the components of a bridge are called in the network itself: where other tools find the same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from allheads.models.compat import is_component, make_network


def module_paths(bridge: TransformerBridge) -> dict[str, str]:
    """The path in the network, ``model.layers.3.mlp``, by the name in the bridge, ``blocks.3.mlp``.

    Components that the bridge adds are left out, such as the queries of a network with one projection for queries, keys
    and values. Networks of others than transformers have none: their classes cannot be asked.
    """
    known = _names(bridge.original_model)
    return {name: path for name, path in _components(bridge, "", "") if path in known}


def _names(network: Any) -> set[str]:
    """What this class calls its modules: bridging has moved some of the network's own."""
    if getattr(network, "config", None) is None:
        return set()
    with torch.device("meta"):
        return {name for name, _ in make_network(type(network), network.config).named_modules() if name}


def _components(module: nn.Module, name: str, path: str) -> Iterator[tuple[str, str]]:
    """Components with their names in the bridge and in the network; those without a name stand for no one module."""
    for key, child in module.named_children():
        if is_component(key):
            inner, where = f"{name}.{key}".strip("."), path
            if isinstance(child, GeneralizedComponent) and child.name is not None:
                where = f"{path}.{child.name}".strip(".")
                yield inner, where
            yield from _components(child, inner, where)
