"""What a frozen network adds whatever comes in: biases, shifts of norms, constants of plain neurons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.frozen_twin import FrozenParts
from allheads.models.compat import network_path
from allheads.twin.twin import TwinBridge


def constants(parts: FrozenParts) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every constant by name, with the module that adds it; to be asked after the run."""
    found = {name: (module, tensor) for name, module, tensor in parts.constants()}
    return found | {name: (module, bias) for name, module, bias in _biases(parts.twin, set(parts.norms))}


def layers_of(cache: ForwardCache, found: dict[str, tuple[nn.Module, Tensor]]) -> dict[str, int]:
    """The layer of every constant: -1 if the stream begins with it, n_layers if it comes after the last layer."""
    inside = {
        id(module): layer for layer in cache.layers for module in cache.twin.blocks[layer].original_component.modules()
    }
    known = {name: inside[id(module)] for name, (module, _) in found.items() if id(module) in inside}
    outside = [name for name in found if name not in known]
    if outside:
        first = cache.activations[cache.streams[0]]
        reach = torch.autograd.grad(
            first.sum(), [found[name][1] for name in outside], retain_graph=True, allow_unused=True
        )
        known |= {
            name: len(cache.layers) if gradient is None else -1 for name, gradient in zip(outside, reach, strict=True)
        }
    return known


@contextmanager
def only_biases_differ(twin: TwinBridge) -> Iterator[None]:
    """Gradients for biases and no other parameter: what weights read need not be kept."""
    before = {parameter: parameter.requires_grad for parameter in twin.original_model.parameters()}
    biases = {id(bias) for _, _, bias in _biases(twin, set())}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in biases)
        yield
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)


def _biases(twin: TwinBridge, norms: set[str]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every bias of the network that is used outside of norms, once, with the module that has it."""
    seen: set[int] = set()
    for path, module in twin.original_model.named_modules():
        clean = network_path(path)
        for leaf, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen or clean in norms:
                continue
            if leaf.endswith("bias") or leaf.startswith("b_"):
                seen.add(id(parameter))
                yield f"{clean}.{leaf}", module, parameter
