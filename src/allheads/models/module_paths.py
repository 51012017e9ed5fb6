"""What the components of a bridge are in the network itself, and what passes there without any bridge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from allheads.models.bridge import share
from allheads.models.compat import is_component, make_network
from allheads.models.observe import run_network


class Passed(NamedTuple):
    """The tensor that a module reads first, or gives, and whether it gives it as the first entry of a tuple."""

    value: Tensor
    in_tuple: bool


def module_paths(bridge: TransformerBridge) -> dict[str, str]:
    """The path in the network, ``model.layers.3.mlp``, by the name in the bridge, ``blocks.3.mlp``.

    Components that the bridge adds have paths, too, where the network has nothing: `passed` tells.
    """
    return dict(_components(bridge, "", ""))


def passed(bridge: TransformerBridge, inputs: Mapping[str, Tensor]) -> dict[tuple[str, str], Passed]:
    """What every module of the network reads and gives, by its path and ``hook_in`` or ``hook_out``.

    This is a run of the network as it is without the bridge, over the same weights.
    """
    found: dict[tuple[str, str], Passed] = {}
    body = share(bridge)
    _put_activations_back(body)
    for path, module in body.named_modules():
        module.register_forward_hook(_keeper(path, found), with_kwargs=True)
    with torch.no_grad():
        run_network(body, inputs)
    return found


def _put_activations_back(body: nn.Module) -> None:
    """A twin has put those of MLPs without a module of their own aside; a network of the class has them."""
    aside = [path for path, module in body.named_modules() if type(module) is nn.Identity]
    if aside and getattr(body, "config", None) is not None:
        with torch.device("meta"):
            like = make_network(type(body), body.config)
        for path in aside:
            owner, _, name = path.rpartition(".")
            setattr(body.get_submodule(owner), name, getattr(like.get_submodule(owner), name))


def _keeper(path: str, found: dict[tuple[str, str], Passed]) -> Any:
    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        value = output[0] if isinstance(output, tuple) and output else output
        # Copies: some networks add to them in place.
        if given is not None:
            found[path, "hook_in"] = Passed(given.clone(), False)
        if isinstance(value, Tensor):
            found[path, "hook_out"] = Passed(value.clone(), isinstance(output, tuple))

    return keep


def _components(module: nn.Module, name: str, path: str) -> Iterator[tuple[str, str]]:
    """Components with their names in the bridge and in the network; those without a name stand for no one module."""
    for key, child in module.named_children():
        if is_component(key):
            inner, where = f"{name}.{key}".strip("."), path
            if isinstance(child, GeneralizedComponent) and child.name is not None:
                where = f"{path}.{child.name}".strip(".")
                yield inner, where
            yield from _components(child, inner, where)
