"""Where a model's MLPs are: which modules of the network will be replaced, and what the bridge calls them.

1. The bridge knows a family's MLPs by component.
2. Inside a mixture of experts, and beside an MLP, the network's own modules are searched for experts.
3. Whatever else in the network, outside attention, computes a known formula is an MLP as well: towers that the
   bridge does not look into, projectors between them, layers of a kind it calls opaque.

What is found in the first two ways must be understood (`allheads.models.read_mlps`); what is not is refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import AttentionBridge, MLPBridge, MoEBridge

from allheads.models.compat import named_components, network_path
from allheads.models.formulas import computes_mlp, is_projection
from allheads.models.locations import Location, numbered, tower_names


@dataclass(frozen=True)
class MLPLocation:
    """A module of the network at ``path`` that computes an MLP, or a stack of experts.

    ``inside`` is None for a module that is called as a whole; otherwise the parts of the MLP sit in the layer at
    ``path``, under these names for ``in`` and ``out``, or ``gate``, ``in`` and ``out``.
    """

    location: Location
    path: str
    experts: bool = False
    inside: tuple[str, ...] | None = None


def locate_mlps(source: TransformerBridge, body: nn.Module) -> list[MLPLocation]:
    """Every MLP and every stack of experts, in the order of the network; ``body`` is it without a bridge."""
    paths = {id(module): network_path(path) for path, module in source.original_model.named_modules()}
    components = {name: component for name, component in named_components(source) if id(component) in paths}
    names = {paths[id(component)]: name for name, component in components.items()}
    sites = _of_bridge(source, body, paths)
    sites += _elsewhere(sites, names, body, is_experts)
    attention = frozenset(path for path, name in names.items() if isinstance(components[name], AttentionBridge))
    sites += _elsewhere(sites, names, body, computes_mlp, attention)
    order = {path: number for number, (path, _) in enumerate(body.named_modules())}
    sites.sort(key=lambda site: order[site.path])
    towers = tower_names(site.location for site in sites)
    return [replace(site, location=numbered(site.location, towers)) for site in sites]


def is_experts(module: nn.Module) -> bool:
    """A stack of experts: three-dimensional weights, called with rows and (in most families) their routes."""
    weights = [p for p in module.parameters(recurse=False) if p.ndim == 3]
    return len(weights) == 2 and "hidden_states" in inspect.signature(module.forward).parameters


def _of_bridge(source: TransformerBridge, body: nn.Module, paths: dict[int, str]) -> list[MLPLocation]:
    """What the bridge calls an MLP or a mixture."""
    sites: list[MLPLocation] = []
    for name, component in named_components(source):
        if not isinstance(component, (MLPBridge, MoEBridge)) or any(_covers(s.location.name, name) for s in sites):
            continue
        if component.name is None:
            parent = source.get_submodule(name.rpartition(".")[0])
            parts = component.submodules
            inside = tuple(str(parts[role].name) for role in ("gate", "in", "out") if role in parts)
            sites.append(MLPLocation(Location.at(name), paths[id(parent)], inside=inside))
        elif isinstance(component, MoEBridge) and not component.bound_dense:
            sites += _mixture(name, paths[id(component)], body)
        elif id(component) in paths:
            sites.append(MLPLocation(Location.at(name), paths[id(component)]))
    return sites


def _mixture(name: str, path: str, body: nn.Module) -> list[MLPLocation]:
    """The experts of a mixture, and what all tokens share; its router stays."""
    found = []
    for inner, module in body.get_submodule(path).named_modules():
        if inner and is_experts(module):
            found.append(MLPLocation(Location.at(f"{name}.{inner}"), f"{path}.{inner}", experts=True))
        elif sum(is_projection(child) for child in module.children()) >= 2:
            expert = re.search(r"expert\w*?[._](\d+)$", inner)
            number = int(expert[1]) if expert else None
            location = Location.at(f"{name}.{inner}".rstrip("."), expert=number, shared="shared" in inner)
            found.append(MLPLocation(location, f"{path}.{inner}".rstrip(".")))
    return found


def _elsewhere(
    sites: list[MLPLocation], names: dict[str, str], body: nn.Module, wanted: Any, barred: frozenset[str] = frozenset()
) -> list[MLPLocation]:
    """What the bridge has no component for, named after the nearest that it has."""
    found: list[MLPLocation] = []
    for path, module in body.named_modules():
        taken = [site.path for site in [*sites, *found] if site.inside is None] + [*barred]
        if path and not any(_covers(outer, path) for outer in taken) and wanted(module):
            parent = next((outer for outer in _upwards(path) if outer in names), None)
            name = path if parent is None else f"{names[parent]}{path.removeprefix(parent)}"
            expert = "shared" in path.rpartition(".")[2]
            found.append(MLPLocation(Location.at(name, shared=expert), path, experts=wanted is is_experts))
    return found


def _covers(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


def _upwards(path: str) -> Iterator[str]:
    yield path
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
