"""Every private name of torch, transformers and TransformerLens that this package needs, in one place.

No other module uses one. Each has a test, `tests/models/test_compat.py`, that says in a sentence what an upgrade of
those libraries took away.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformer_lens.model_bridge import TransformerBridge
from transformers.initialization import no_init_weights

__all__ = [
    "attention_kernel",
    "called",
    "experts_kernel",
    "forget_quantisation",
    "is_component",
    "make_network",
    "named_components",
    "network_module",
    "network_path",
    "offline",
    "points_hidden",
    "scan_hooks",
    "tree_leaves",
    "tree_map",
    "use_attention_kernel",
    "version",
    "weights_processed",
    "without_ends",
    "wrap",
    "wrappers",
]

#: Under which name a bridge component holds the network's own module.
_WRAPPED = "_original_component"
#: Children of a bridge that are no components of it.
_NOT_COMPONENTS = (_WRAPPED, "original_model", "_container_state_owners")


def network_module(module: nn.Module) -> nn.Module:
    """The network's own module, below any bridge component around it."""
    inner = module._modules.get(_WRAPPED)
    return module if inner is None else network_module(inner)


def network_path(path: str) -> str:
    """A module's path in the network, without the bridge components on the way.

    >>> network_path("model.layers.0._original_component.mlp")
    'model.layers.0.mlp'
    """
    return ".".join(part for part in path.split(".") if part != _WRAPPED)


def wrap(component: Any, module: nn.Module) -> None:
    """Put a bridge component around a module."""
    component.set_original_component(module)


def wrappers(network: nn.Module) -> dict[int, Any]:
    """The bridge component around each wrapped module of a network, by the module's ``id``."""
    return {id(inner): module for module in network.modules() if (inner := module._modules.get(_WRAPPED)) is not None}


def called(network: nn.Module, path: str) -> nn.Module:
    """What the network calls at a path, below any bridge component on the way; the last may be one."""
    module = network
    for part in path.split(".") if path else ():
        module = network_module(module).get_submodule(part)
    return module


def is_component(name: str) -> bool:
    """Does a bridge hold a component of its own under this name, and not what it wraps?"""
    return name not in _NOT_COMPONENTS


def named_components(bridge: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Modules of a bridge by name; what they wrap is left out."""
    for name, child in bridge.named_children():
        if is_component(name):
            path = f"{prefix}{name}"
            yield path, child
            yield from named_components(child, f"{path}.")


@contextmanager
def without_ends(component: nn.Module) -> Iterator[None]:
    """Let a bridge component compute without the hook points at its beginning and end, for a while."""
    modules: dict[str, nn.Module | None] = component._modules
    ends: dict[str, nn.Module | None] = {name: modules[name] for name in ("hook_in", "hook_out") if name in modules}
    for name in ends:
        modules[name] = nn.Identity()
    try:
        yield
    finally:
        modules.update(ends)


def weights_processed(model: TransformerBridge) -> bool:
    """Has ``enable_compatibility_mode`` folded or centred the weights of a bridge?"""
    return bool(getattr(model, "_weights_processed", False))


def scan_hooks(bridge: TransformerBridge, component: Any, name: str) -> None:
    """Let a bridge find the own hook points of a component that has changed, or is new, under this name."""
    own: Any = SimpleNamespace(get_hooks=component.get_hooks, named_children=lambda: ())
    bridge._scan_existing_hooks(own, name)
    bridge._hook_cache = None
    bridge._block_alias_cache = None
    driver = bridge._driver
    driver.supported_hook_points = frozenset(bridge._hook_registry) - driver.non_fireable_hook_points


@contextmanager
def points_hidden(bridge: TransformerBridge, points: Container[int]) -> Iterator[None]:
    """Let a bridge not know of the hook points with these ``id``s for a while."""
    everything = bridge._hook_registry
    bridge._hook_registry = {name: point for name, point in everything.items() if id(point) not in points}
    try:
        yield
    finally:
        bridge._hook_registry = everything


def attention_kernel(config: Any) -> str | None:
    """Which implementation of attention a network computes with: ``eager``, ``sdpa`` ..."""
    return getattr(config, "_attn_implementation", None)


def experts_kernel(config: Any) -> str | None:
    """Which implementation of a mixture of experts a network computes with."""
    return getattr(config, "_experts_implementation", None)


def use_attention_kernel(network: Any, name: str) -> None:
    """Let a network of transformers compute attention with another implementation."""
    network.set_attn_implementation(name)


def make_network(network_class: Any, config: Any, **options: Any) -> Any:
    """A network of transformers from its configuration, with any weights: none are drawn."""
    with no_init_weights(), torch.random.fork_rng(devices=[]):
        return network_class._from_config(config, **options)


@contextmanager
def offline(really: bool = True) -> Iterator[None]:
    """Let the Hugging Face libraries refuse the network, whatever a file that they read names.

    And let pip and uv: TransformerLens installs torchvision for processors of images, and with it another torch.
    """
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    installers = {name: os.environ.get(name) for name in ("PIP_NO_INDEX", "UV_OFFLINE")}
    huggingface_hub.constants.HF_HUB_OFFLINE = before or really
    os.environ |= dict.fromkeys(installers, "1") if really else {}
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
        for name, value in installers.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def forget_quantisation(model: Any) -> None:
    """Mark a dequantised model as plain: transformers refuses to save one that is marked as quantised."""
    del model.hf_quantizer, model.config.quantization_config
    model.is_quantized = False


def version(tensor: Tensor) -> int:
    """How often a tensor was written to in place."""
    return tensor._version
