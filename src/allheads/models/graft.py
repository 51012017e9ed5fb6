"""Banks of heads take the place of MLPs in a bridged network, under the names and hook points of what they replace.

The network is bridged as it is and changed afterwards: in the network, where it is called, and in the bridge, where
it is looked at. The component's own ``hook_in`` and ``hook_out`` stay, so that aliases of the layer that point to
them do; the hook points of the projections go, and those of the heads come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from allheads.heads.bank import HeadBank
from allheads.heads.mixture import MixtureBank
from allheads.models.compat import called, hook_registry, network_module, wrap
from allheads.models.mlps import ReplacedMLP, activation_of


class HeadBankBridge(GeneralizedComponent):
    """The bridge component around a bank: its hook points appear as ``blocks.{l}.mlp.hook_*``."""

    def __init__(self, name: str | None, bank: HeadBank | MixtureBank, *, residual: bool, config: Any) -> None:
        super().__init__(name, config)
        self.residual = residual
        wrap(self, bank)

    def adopt(self, replaced: GeneralizedComponent) -> None:
        """Take over the hook points that stay."""
        self.hook_in, self.hook_out = replaced.hook_in, replaced.hook_out

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """``hook_out(bank(hook_in(x)))``, plus the residual where the MLP was given it.

        Layers that flatten batch and position are shown unflattened.
        """
        given = [*args, *kwargs.values()]
        bank, x = self.original_component, self.hook_in(given[0])
        if isinstance(bank, MixtureBank):
            return self.hook_out(bank(x, *given[1:]))
        conversion = self.hook_in.hook_conversion
        rows = conversion.convert(x) if conversion is not None else x
        out = bank(rows if rows.ndim == 3 else rows.flatten(0, -2)[None])
        out = self.hook_out(out.reshape(x.shape))
        return out + given[1] if self.residual else out


def graft(twin: TransformerBridge, unit: ReplacedMLP, banks: Sequence[HeadBank]) -> None:
    """Put a unit's banks where the network calls it and where the bridge shows it."""
    site = unit.site
    bank: HeadBank | MixtureBank = MixtureBank(banks) if site.experts else banks[0]
    component = HeadBankBridge(site.path.rpartition(".")[2], bank, residual=unit.residual, config=twin.cfg)
    component.train(twin.original_model.training)
    replaced = _component(twin, site.location.name)
    if replaced is not None:
        component.adopt(replaced)
    _replace_in_network(twin.original_model, unit, component)
    _replace_in_bridge(twin, site.location.name, component)
    keep = {f"{site.location.name}.hook_in": component.hook_in, f"{site.location.name}.hook_out": component.hook_out}
    registry = hook_registry(twin)
    for name in [name for name in registry if name.startswith(f"{site.location.name}.")]:
        if name not in keep:
            del registry[name]
    for name, point in keep.items():
        point.name = name  # an assignment to a module renames it
    registry.update(keep)
    for mlp, of_mlp in zip(unit.mlps, banks, strict=True):
        for name, point in of_mlp.hooks.named_children():
            assert isinstance(point, HookPoint)
            point.name = f"{mlp.location.prefix}{name}"
            registry[point.name] = point


def _replace_in_network(body: nn.Module, unit: ReplacedMLP, component: HeadBankBridge) -> None:
    site = unit.site
    if site.inside is None:
        _set(body, site.path, component)
        return
    # The layer calls in, activation, out one after the other: the bank answers for all three.
    layer = network_module(called(body, site.path))
    owner, name = activation_of(site, layer)
    _set(layer, site.inside[0], component)
    setattr(owner, name, nn.Identity())
    _set(layer, site.inside[1], nn.Identity())


def _set(body: nn.Module, path: str, module: nn.Module) -> None:
    outer, _, name = path.rpartition(".")
    network_module(called(body, outer))._modules[name] = module


def _component(twin: TransformerBridge, name: str) -> GeneralizedComponent | None:
    module: nn.Module = twin
    for part in name.split("."):
        if part not in module._modules:
            return None
        module = module.get_submodule(part)
    return module if isinstance(module, GeneralizedComponent) else None


def _replace_in_bridge(twin: TransformerBridge, name: str, component: HeadBankBridge) -> None:
    """Experts may sit deeper than the bridge has components: then they appear under the last that exists."""
    module: nn.Module = twin
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module._modules[part] = nn.Module()
        module = module.get_submodule(part)
    module._modules[last] = component
    if isinstance(module, GeneralizedComponent):
        module.submodules[last] = component
        _realias(twin, module, name.rpartition(".")[0], last, component)


def _realias(twin: TransformerBridge, layer: Any, path: str, last: str, component: HeadBankBridge) -> None:
    """Aliases of the layer into parts that are gone, as ``hook_mlp_out`` for some, point to the bank's own."""
    aliases = {}
    for alias, target in layer.hook_aliases.items():
        gone = isinstance(target, str) and target.startswith(f"{last}.") and target.count(".") > 1
        aliases[alias] = f"{last}.hook_{'in' if alias.endswith('_in') else 'out'}" if gone else target
        if gone:
            point = component.get_submodule(aliases[alias].rpartition(".")[2])
            object.__setattr__(layer, alias, point)
            hook_registry(twin)[f"{path}.{alias}"] = cast(HookPoint, point)
    layer.hook_aliases = aliases
