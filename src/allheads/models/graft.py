"""Banks of heads take over from the MLPs of a bridged network, under the names and hook points of these.

Nothing of the network goes: its projections keep the weights, which banks read where they are, and the bridge keeps
its components, with their hook points, their state and the processing of their weights. What changes is what happens
when an MLP's component is called. A bank is found at ``heads``, in the module whose work it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from allheads.heads.bank import HeadBank
from allheads.heads.mixture import MixtureBank
from allheads.models.compat import called, network_module, scan_hooks, wrap
from allheads.models.find_mlps import MLPLocation
from allheads.models.formulas import is_projection
from allheads.models.mlps import ReplacedMLP, activation_of, projection_views

Points = tuple[HookPoint, ...]


def _of_heads(name: str) -> Any:
    """An attribute of a component that is its bank's."""

    def read(component: Any) -> Tensor | None:
        if name == "b_gate" and isinstance(component.heads, HeadBank) and component.heads.edited is not None:
            raise AttributeError(name)  # TransformerLens looks at this one when it looks for hook points
        return getattr(component.heads, name)

    return property(read)


class HeadBankBridge(GeneralizedComponent):
    """A bridge component whose MLP, or stack of experts, is computed by heads.

    `graft` puts this class before that of a component which a bridge has already. ``begins`` are the hook points that
    see what the MLP reads, ``written`` those of what its last projection writes, and ``ends`` those of its result:
    the same, plus the residual stream where the MLP is given that to add it itself.
    """

    heads: HeadBank | MixtureBank
    begins: Points
    written: Points
    ends: Points
    adds_residual: bool

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the MLP gives. Layers that flatten batch and position are shown unflattened."""
        given = [*args, *kwargs.values()]
        x = _through(self.begins, given[0])
        if isinstance(self.heads, MixtureBank):
            return _through(self.ends, self.heads(x, *given[1:]))
        conversion = self.begins[-1].hook_conversion if self.begins else None
        rows = conversion.convert(x) if conversion is not None else x
        out = self.heads(rows if rows.ndim == 3 else rows.flatten(0, -2)[None])
        out = _through(self.written, out.reshape(x.shape))
        return _through(self.ends, out + given[1] if self.adds_residual else out)

    W_in, W_gate, W_out, b_in, b_gate, b_out = map(_of_heads, ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out"))


class PassingBridge(GeneralizedComponent):
    """The activation or the last projection of an MLP without a module: its first one has run the heads already."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """What the heads wrote."""
        return x


class OneBridge(PassingBridge):
    """The value projection of a gated MLP without a module of its own, by which its layer multiplies."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """One: what the heads wrote has the values in it."""
        return x.new_ones(())


def graft(twin: TransformerBridge, unit: ReplacedMLP, banks: Sequence[HeadBank]) -> None:
    """Let a unit's banks run where the network calls the MLP, and show them where the bridge shows it."""
    site, network = unit.site, twin.original_model
    shown = _component(twin, site.location.name) or _added(twin, site)
    heads: HeadBank | MixtureBank = MixtureBank(banks) if site.experts else banks[0]
    heads.train(network.training)
    written: tuple[HookPoint, ...] = ()
    runners: list[tuple[Any, Points, Points]] = [(shown, (shown.hook_in,), (shown.hook_out,))]
    if site.inside is not None:
        # The layer calls the parts one after the other: the first answers for all.
        layer = network_module(called(network, site.path))
        first, *middle, last = (called(layer, path) for path in site.inside)
        _passes_on(*activation_of(site, layer))
        for value in middle:
            _becomes(value, OneBridge)
        _becomes(last, PassingBridge)
        written = (last.hook_out,)
        if middle:  # each of two projections has a hook point for what it reads: the bank fires both
            runners.append((first, (), ()))
        else:
            runners = [(component, (first.hook_in,), ()) for component in (shown, first)]
    elif not site.experts and (last := _projection(shown, banks[0], "out")) is not None:
        written = (last.hook_out,)
    network_module(runners[-1][0])._modules["heads"] = heads
    for component, begins, ends in runners:
        _becomes(component, HeadBankBridge)
        points = {"begins": begins, "written": written, "ends": ends}
        for name, known in {"heads": heads, "adds_residual": unit.residual, **points}.items():
            object.__setattr__(component, name, known)  # a component hands attributes on to what it wraps
    if site.experts:
        for number, bank in enumerate(banks):
            shown._modules[str(number)] = bank.hooks
            scan_hooks(twin, bank.hooks, f"{site.location.name}.{number}")
    else:
        _join_hooks(shown, banks[0], shown.begins)
    scan_hooks(twin, shown, site.location.name)


def _passes_on(owner: nn.Module, name: str) -> None:
    """Let the activation function under this name give what it is given."""
    activation = getattr(owner, name)
    if isinstance(activation, GeneralizedComponent):
        _becomes(activation, PassingBridge)
    else:
        setattr(owner, name, nn.Identity().train(owner.training))


def _through(points: Sequence[HookPoint], x: Tensor) -> Tensor:
    for point in points:
        x = point(x)
    return x


def _becomes(component: nn.Module, ours: type) -> None:
    theirs: Any = type(component)
    component.__class__ = _before(ours, theirs)


@cache
def _before(ours: type, theirs: type) -> type:
    """One class, so that a component stays what it was to whoever asks, and is ours as well."""
    return theirs if issubclass(theirs, ours) else type(theirs.__name__, (ours, theirs), {"__doc__": ours.__doc__})


def _join_hooks(shown: Any, bank: HeadBank, begins: Sequence[HookPoint]) -> None:
    """The bank fires the hook points of the projections that it reads; its others are shown beside them.

    Where gate and value are one projection, and the bridge does not split it, its points show the gate's half.
    """
    query = "gate" if bank.gated else "in"
    joined = {query: {"hook_in": "hook_query_in", "hook_out": "hook_pre"}, "out": {"hook_in": "hook_post"}}
    if bank.gated:
        joined["in"] = {"hook_in": "hook_value_in", "hook_out": "hook_pre_linear"}
    hidden = {"hook_query_in", "hook_value_in", *(() if bank.gated else ("hook_pre_linear",))}
    for role, points in joined.items():
        projection = _projection(shown, bank, role)
        if projection is None and (role != query or (projection := _owner(shown, bank, role)) is None):
            continue
        if bank.views[f"W_{role}"].owner is not network_module(projection):
            # A bridge that splits a joint projection computes with the parts.
            bank.views[f"W_{role}"], bank.views[f"b_{role}"] = projection_views(network_module(projection))
        joint = projection is not None and role == query and bank.gated and _projection(shown, bank, "in") is None
        for theirs, ours in points.items():
            if (point := getattr(projection, theirs)) not in begins:
                point.hook_conversion = None  # a bank sees batch and position apart anyway
                setattr(bank.hooks, ours, point)
                hidden.add(ours)
                if joint and theirs == "hook_in":  # gate and value read through it
                    bank.hooks.hook_value_in = point
    for name, point in bank.hooks.named_children():
        if name not in hidden:
            setattr(shown, name, point)


def _projection(shown: Any, bank: HeadBank, role: str) -> Any:
    """The bridge's component for the projection ``in``, ``gate`` or ``out`` of a bank: the one with its weights."""
    weight = bank.shared(f"W_{role}")
    for component in shown.submodules.values():
        module = network_module(component)
        if is_projection(module) and isinstance(component, GeneralizedComponent):
            theirs = projection_views(module)[0].read()
            if theirs is not None and weight is not None and _same_memory(theirs, weight):
                return component
    return None


def _owner(shown: Any, bank: HeadBank, role: str) -> Any:
    """The bridge's component for the module that has these weights among others."""
    components = (each for each in shown.submodules.values() if isinstance(each, GeneralizedComponent))
    return next((each for each in components if network_module(each) is bank.views[f"W_{role}"].owner), None)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())


def _component(twin: TransformerBridge, name: str) -> Any:
    module: nn.Module = twin
    for part in name.split("."):
        if part not in module._modules:
            return None
        module = module.get_submodule(part)
    return module if isinstance(module, GeneralizedComponent) else None


def _added(twin: TransformerBridge, site: MLPLocation) -> HeadBankBridge:
    """A component for an MLP that the bridge has none for.

    It may sit deeper than the bridge has components: then it appears under the last that exists.
    """
    outer, _, last = site.path.rpartition(".")
    network = network_module(called(twin.original_model, outer))
    component = HeadBankBridge(last, twin.cfg)
    wrap(component, network.get_submodule(last))
    component.train(twin.original_model.training)
    network._modules[last] = component
    module: nn.Module = twin
    *path, last = site.location.name.split(".")
    for part in path:
        if part not in module._modules:
            module._modules[part] = nn.Module()
        module = module.get_submodule(part)
    module._modules[last] = component
    if isinstance(module, GeneralizedComponent):
        module.submodules[last] = component
    return component
