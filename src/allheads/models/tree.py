"""Finding one's way in a network, whether a bridge has wrapped its modules or not."""

from __future__ import annotations

from torch import nn


def called(body: nn.Module, path: str) -> nn.Module:
    """What the network calls at a path, below any bridge component on the way; the last may be one."""
    module = body
    for part in path.split(".") if path else ():
        module = unwrapped(module).get_submodule(part)
    return module


def unwrapped(module: nn.Module) -> nn.Module:
    """The network's own module."""
    inner = module._modules.get("_original_component")
    return module if inner is None else unwrapped(inner)
