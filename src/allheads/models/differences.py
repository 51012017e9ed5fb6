"""What differs, value by value, between two bridges of one network, outside the MLPs and the banks in their place.

A text reaches few weights: no other position, token or expert, and no attention but on one token. So both networks are
gone through module by module, bridge components included: classes, parameters, buffers (stored with the model or not),
numbers and other settings that a module keeps beside them, configurations, functions put in the place of methods, and
how many hooks there are. What a twin shares with its source is the same memory, and costs no comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from allheads.models.bridge import TransformerBridge
from allheads.models.compat import called, network_module, network_path
from allheads.models.mlps import ReplacedMLP, activation_of

#: What torch and TransformerLens keep in a module beside its settings: hooks and where they are registered, modes, and
#: what the last run left behind.
_BOOKKEEPING = {*vars(nn.Module()), "fwd_hooks", "bwd_hooks", "ctx", "hook_aliases", "submodules"}
_BOOKKEEPING |= {"compatibility_mode", "disable_warnings"}  # how hooks are named, and not what is computed
_LEFT_BEHIND = re.compile(
    r"_fired|_capture|_pattern$|_attn_scores$|hook_(?!conversion)|gradient_checkpointing|.*_states?$|.*name$|.*path$"
)
#: Values that are compared as they are.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, set, frozenset)


def differences(source: TransformerBridge, twin: TransformerBridge, replaced: Iterable[ReplacedMLP]) -> list[str]:
    """What differs outside the banks, each as a phrase that begins with its path in the network."""
    units = list(replaced)
    mine, theirs = _modules(source, units), _modules(twin, units)
    found = [
        f"{network_path(path)}: only in the {where}"
        for where, these, others in (("source", mine, theirs), ("twin", theirs, mine))
        for path, module in these.items()
        if path not in others and not _inert(module)
    ]
    compared: set[tuple[int, int]] = set()
    for path in mine:
        if path in theirs:
            found += (f"{network_path(path)}{phrase}" for phrase in _differing(mine[path], theirs[path], compared))
    return list(dict.fromkeys(found))


def difference(source: Any, twin: Any) -> str | None:
    """How a tensor of the twin differs from the source's, in words; None if it does not.

    >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    '1 of 2 entries differ, by up to 0.5'
    >>> difference(torch.zeros(2), None)
    'None in the twin, float32 [2] in the source'
    """
    if not isinstance(source, Tensor) or not isinstance(twin, Tensor):
        return None if source is twin else f"{_shown(twin)} in the twin, {_shown(source)} in the source"
    if (source.shape, source.dtype) != (twin.shape, twin.dtype):
        return f"{_shown(twin)} in the twin, {_shown(source)} in the source"
    if _one_memory(source, twin) or torch.equal(mine := source.detach(), theirs := twin.detach().to(source.device)):
        return None
    other = (mine != theirs) & ~(mine.isnan() & theirs.isnan()) if mine.is_floating_point() else mine != theirs
    if not other.any():
        return None
    largest = float((mine[other].double() - theirs[other].double()).abs().max())
    return f"{int(other.sum())} of {other.numel()} entries differ, by up to {largest:.3g}"


def _modules(model: TransformerBridge, units: list[ReplacedMLP]) -> dict[str, nn.Module]:
    """Modules of a bridged network by path, without its MLPs, or the banks in their place."""
    network = model.original_model
    roots: list[object] = []
    barred: set[int] = set()
    for unit in units:
        roots += [called(network, path) for path in unit.paths]
        if unit.site.inside is not None:
            owner, name = activation_of(unit.site, network_module(called(network, unit.site.path)))
            # The bridge's component wraps the whole layer here: only its own hook points stand for the MLP.
            component = _component(model, unit)
            roots += [getattr(owner, name), *(() if component is None else hook_points(component))]
            barred.add(id(component))
    barred |= {id(inner) for root in roots if isinstance(root, nn.Module) for inner in root.modules()}
    return {path: module for path, module in network.named_modules() if id(module) not in barred}


def _component(model: TransformerBridge, unit: ReplacedMLP) -> nn.Module | None:
    """What the bridge shows at the MLP's name, if it goes that deep."""
    module: nn.Module | None = model
    for part in unit.site.location.name.split("."):
        module = None if module is None else module._modules.get(part)
    return module


def _inert(module: nn.Module) -> bool:
    """Is it one of the bridge's own boxes, which only hand on what they are given?"""
    boxes = (nn.Module, GeneralizedComponent, HookPoint)
    return type(module) in boxes and "forward" not in vars(module) and not hooks(module) and not module._parameters


def _differing(mine: nn.Module, theirs: nn.Module, compared: set[tuple[int, int]]) -> Iterator[str]:
    if type(mine) is not type(theirs):
        yield f": a {type(theirs).__name__} in the twin, a {type(mine).__name__} in the source"
        return
    tensors = [dict([*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]) for m in (mine, theirs)]
    for name in dict.fromkeys([*tensors[0], *tensors[1]]):
        phrase = difference(*(tensors_of.get(name) for tensors_of in tensors))
        if phrase is not None:
            yield f".{name}: {phrase}"
    yield from _differing_settings(mine, theirs, compared)
    if hooks(mine) != hooks(theirs):
        yield f": {hooks(theirs)} hooks in the twin, {hooks(mine)} in the source"


def hooks(module: nn.Module) -> int:
    """How many functions of a user see, and may change, what a module reads and writes."""
    if isinstance(module, HookPoint):
        functions = [handle.user_hook for handle in module.fwd_hooks]
        return sum(
            not str(getattr(function, "__module__", "")).startswith("transformer_lens") for function in functions
        )
    functions = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return sum(not str(getattr(function, "__module__", "")).startswith("transformer") for function in functions)


def hook_points(component: nn.Module) -> list[HookPoint]:
    """The hook points of a bridge component itself."""
    return [child for child in component.children() if isinstance(child, HookPoint)]


def _differing_settings(mine: nn.Module, theirs: nn.Module, compared: set[tuple[int, int]]) -> Iterator[str]:
    settings = [_settings(module) for module in (mine, theirs)]
    for name in dict.fromkeys([*settings[0], *settings[1]]):
        if all(name in each for each in settings):
            phrase = _apart(settings[0][name], settings[1][name], compared)
            if phrase is not None:
                yield f".{name}{phrase}"
        elif not name.startswith("_"):
            where = "source" if name in settings[0] else "twin"
            yield f".{name}: only in the {where}"


def _settings(thing: Any) -> dict[str, Any]:
    kept = getattr(thing, "__dict__", {}).items()
    return {name: value for name, value in kept if name not in _BOOKKEEPING and not _LEFT_BEHIND.match(name)}


def _apart(a: Any, b: Any, compared: set[tuple[int, int]]) -> str | None:
    """Where and how two settings differ; None if they do not.

    Modules in them are met elsewhere, and each pair of objects is compared once.
    """
    if a is b or isinstance(a, nn.Module) or (id(a), id(b)) in compared:
        return None
    # Classes made inside a function are made anew for each bridge.
    other_kind = (type(a).__module__, type(a).__qualname__) != (type(b).__module__, type(b).__qualname__)
    if isinstance(a, Tensor) or other_kind:
        phrase = difference(a, b)
        return None if phrase is None else f": {phrase}"
    if isinstance(a, RemovableHandle):  # what it is for is counted at the module that it is a hook of
        return None
    if isinstance(a, _PLAIN):
        return None if a == b or (a != a and b != b) else f": {_shown(b)} in the twin, {_shown(a)} in the source"
    compared.add((id(a), id(b)))
    if callable(a):
        return None if _code(a) is _code(b) else ": another function"
    if isinstance(a, (tuple, list)):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, Mapping):
        if a.keys() != b.keys():
            return f": {_shown(list(b))} in the twin, {_shown(list(a))} in the source"
        return _first((f"[{key!r}]", _apart(a[key], b[key], compared)) for key in a)
    mine, theirs = _settings(a), _settings(b)
    return _first((f".{name}", _apart(mine[name], theirs[name], compared)) for name in mine if name in theirs)


def _first(phrases: Iterable[tuple[str, str | None]]) -> str | None:
    return next((f"{where}{phrase}" for where, phrase in phrases if phrase is not None), None)


def _code(function: Callable[..., Any]) -> object:
    """What a function, or a bound method, runs."""
    return getattr(getattr(function, "__func__", function), "__code__", type(function))


def _one_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.device == b.device and a.numel() > 0


def _shown(value: Any) -> str:
    return (
        f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        if isinstance(value, Tensor)
        else repr(value)[:60]
    )
