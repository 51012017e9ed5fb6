"""Where a model's MLPs are: which modules of the network will be replaced, and what the bridge calls them.

The bridge knows a family's MLPs by component; inside a mixture of experts, and beside it, the network's own modules
are searched. Nothing is read here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import MLPBridge, MoEBridge
from transformers.pytorch_utils import Conv1D

from allheads.errors import AllHeadsError
from allheads.models.places import Place

_WRAPPED = "_original_component"


@dataclass(frozen=True)
class Site:
    """A module of the network at ``path`` that computes an MLP, or a stack of experts.

    ``inside`` is None for a module that is called as a whole; otherwise the parts of the MLP sit in the layer at
    ``path``, under these names for ``in`` and ``out``.
    """

    place: Place
    path: str
    experts: bool = False
    inside: tuple[str, str] | None = None


def find_sites(source: TransformerBridge, body: nn.Module) -> list[Site]:
    """Every MLP and every stack of experts, in the order of the layers; ``body`` is the network without a bridge."""
    paths = {id(module): _clean(path) for path, module in source.original_model.named_modules()}
    names = {paths[id(component)]: name for name, component in components(source) if id(component) in paths}
    sites: list[Site] = []
    for name, component in components(source):
        if not isinstance(component, (MLPBridge, MoEBridge)) or any(_within(name, site) for site in sites):
            continue
        if component.name is None:
            parent = source.get_submodule(name.rpartition(".")[0])
            inside = (str(component.submodules["in"].name), str(component.submodules["out"].name))
            sites.append(Site(Place.at(name), paths[id(parent)], inside=inside))
        elif isinstance(component, MoEBridge) and not component.bound_dense:
            sites += _mixture(name, paths[id(component)], body)
        elif id(component) in paths:
            sites.append(Site(Place.at(name), paths[id(component)]))
    return sites + _siblings(sites, names, body)


def is_projection(module: nn.Module) -> bool:
    """A linear map with weights of its own."""
    return isinstance(module, (nn.Linear, Conv1D))


def is_experts(module: nn.Module) -> bool:
    """A stack of experts: three-dimensional weights, called with rows and (in most families) their routes."""
    weights = [p for p in module.parameters(recurse=False) if p.ndim == 3]
    return len(weights) >= 2 and "hidden_states" in inspect.signature(module.forward).parameters


def _mixture(name: str, path: str, body: nn.Module) -> list[Site]:
    """The experts of a mixture, and what all tokens share; its router stays."""
    container = body.get_submodule(path)
    found = []
    for inner, module in container.named_modules():
        if inner and is_experts(module):
            found.append(Site(Place.at(f"{name}.{inner}"), f"{path}.{inner}", experts=True))
        elif sum(is_projection(child) for child in module.children()) >= 2:
            expert = re.search(r"expert\w*?[._](\d+)$", inner)
            number = int(expert[1]) if expert else None
            place = Place.at(f"{name}.{inner}".rstrip("."), expert=number, shared="shared" in inner)
            found.append(Site(place, f"{path}.{inner}".rstrip(".")))
    return found


def _siblings(sites: list[Site], names: dict[str, str], body: nn.Module) -> list[Site]:
    """Experts that no component of the bridge answers for, beside an MLP in its layer."""
    found = []
    for path, module in body.named_modules():
        if path and is_experts(module) and not any(_covers(site.path, path) for site in sites):
            parent = next(outer for outer in _upwards(path) if outer in names)
            name = f"{names[parent]}.{path.removeprefix(parent + '.')}"
            found.append(Site(Place.at(name), path, experts=True))
    return found


def components(bridge: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Modules of a bridge by name; what they wrap is left out."""
    for name, child in bridge.named_children():
        if name not in (_WRAPPED, "original_model", "_container_state_owners"):
            path = f"{prefix}{name}"
            yield path, child
            yield from components(child, f"{path}.")


def _clean(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _WRAPPED)


def _within(name: str, site: Site) -> bool:
    return name.startswith(site.place.name + ".") or name == site.place.name


def _covers(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


def _upwards(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def input_size(module: nn.Module) -> int:
    """``d_model`` of what an MLP reads: the input of its first projection."""
    for child in module.modules():
        if isinstance(child, Conv1D):
            return child.weight.shape[0]
        if isinstance(child, nn.Linear):
            return child.weight.shape[1]
    raise AllHeadsError("an MLP with linear projections", type(module).__name__, "It is not supported yet.")
