"""What a frozen network adds whatever comes in: biases, shifts of norms, constants of plain neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from allheads.attribution.dependence import depends_on
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.frozen_twin import FrozenParts
from allheads.models.compat import network_module, network_path
from allheads.twin.twin import TwinBridge

#: What rounding may do in a forward pass, relative to the size of what is summed, in units of the last place.
ULPS = 2.0**10


def constants(parts: FrozenParts) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every constant by name, with the module that adds it; to be asked after the run."""
    found = {name: (module, tensor) for name, module, tensor in parts.constants()}
    return found | {name: (module, bias) for name, module, bias in _biases(parts.twin, set(parts.norms))}


def layers_of(cache: ForwardCache, found: dict[str, tuple[nn.Module, Tensor]], cuts: list[str]) -> dict[str, int]:
    """The cut that every constant comes after: the layer that adds it, -1 before the first, n_layers after the last.

    Where not every layer is a cut, 1 is what comes after the last of ``cuts``, and -1 all the rest.
    """
    known: dict[str, int] = {}
    layered = cache.whole and cuts[-1] in cache.cuts()
    if layered:
        blocks = cache.twin.get_submodule(cache.stacks[-1])
        inside = {
            id(module): layer
            for layer in cache.layers
            for module in network_module(blocks.get_submodule(str(layer))).modules()
        }
        known = {name: inside[id(module)] for name, (module, _) in found.items() if id(module) in inside}
    outside = [name for name in found if name not in known]
    if outside and (layered or len(cuts) > 1):
        stream, after = (cuts[0], len(cache.layers)) if layered else (cuts[-1], 1)
        reach = depends_on(cache.activations[stream], [found[name][1] for name in outside])
        known |= {name: -1 if reached else after for name, reached in zip(outside, reach, strict=True)}
    return {name: known.get(name, -1) for name in found}


def unnamed(
    cache: ForwardCache, gradients: Mapping[str, Tensor | None], found: dict[str, tuple[nn.Module, Tensor]]
) -> dict[str, float]:
    """What streams begin with beside embeddings and constants that have a name, times its gradient, by hook point.

    A table of positions that is computed, or what ends the rows of an image. Nothing says that it is constant: whoever
    asks makes sure that the network is linear.
    """
    known = {**cache.leaves, **{name: tensor for name, (_, tensor) in found.items()}}
    rest: dict[str, float] = {}
    for name in cache.starts:
        stream, gradient = cache.activations[name], gradients[name]
        if gradient is None or not stream.requires_grad:
            continue
        carried = torch.autograd.grad(stream, list(known.values()), gradient, retain_graph=True, allow_unused=True)
        parts = [
            (back * tensor.detach()).sum()
            for back, tensor in zip(carried, known.values(), strict=True)
            if back is not None
        ]
        whole = (gradient * stream.detach()).sum()
        gap, size = float(whole - sum(parts)), float((gradient * stream.detach()).abs().sum())
        if abs(gap) > ULPS * torch.finfo(stream.dtype).eps * size:
            rest[name] = gap
    return rest


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
