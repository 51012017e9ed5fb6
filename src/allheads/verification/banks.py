"""The banks of a twin: are they what its network calls, and are their heads those that the source's MLPs make?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice

import torch
from torch import nn

from allheads.errors import AllHeadsError
from allheads.gates.approximation import certificate
from allheads.heads.bank import HeadBank
from allheads.heads.edited import EditedHeads
from allheads.heads.mixture import MixtureBank
from allheads.models.compat import called, network_module
from allheads.models.differences import difference, hook_points, hooks
from allheads.models.graft import HeadBankBridge, OneBridge, PassingBridge
from allheads.models.mlps import MLP, ReplacedMLP, activation_of
from allheads.twin.domain import Domain, needs_domain
from allheads.twin.twin import Layer, TwinBridge

#: Domains that were measured on the same random input agree to this, in any dtype.
_SAME_DOMAIN = 1e-2


def check_banks(twin: TwinBridge, replaced: Sequence[ReplacedMLP]) -> None:
    """Refuse a twin whose network calls, where the source has its MLPs, anything else than the banks of its layers.

    Raises `AllHeadsError`, for frozen banks as well.
    """
    remedy = "Convert again."
    expected = [mlp.location.name for unit in replaced for mlp in unit.mlps]
    if [layer.location.name for layer in twin.layers] != expected:
        raise AllHeadsError(f"a twin with banks at {', '.join(expected)}"[:200], "others", remedy)
    layers = iter(twin.layers)
    around = [
        unit.site.location.stem
        for unit in replaced
        if not _calls(twin, unit, [layer.bank for layer in islice(layers, len(unit.mlps))])
    ]
    if around:
        raise AllHeadsError(
            "a twin whose network calls its banks where the source calls its MLPs",
            f"one that goes around {', '.join(around)}",
            remedy,
        )
    if frozen := [layer.location.stem for layer in twin.layers if layer.bank.frozen is not None]:
        raise AllHeadsError("gates that follow the input", f"frozen ones in {', '.join(frozen)}", "Unfreeze them.")


def _calls(twin: TwinBridge, unit: ReplacedMLP, banks: list[HeadBank]) -> bool:
    """Does the network call these banks, and nothing around them, at the place of an MLP?"""
    try:
        component = called(twin.original_model, unit.reads)
        idle = _idle(twin, unit)
    except (AttributeError, AllHeadsError):
        return False
    if not isinstance(component, HeadBankBridge):
        return False
    heads = component.heads
    own: list[nn.Module] = list(heads) if isinstance(heads, MixtureBank) else [heads]
    computes = [
        (component, HeadBankBridge),
        (heads, MixtureBank if isinstance(heads, MixtureBank) else HeadBank),
        *((bank, HeadBank) for bank in own),
        *idle,
    ]
    return (
        all(type(module).forward is kind.forward and "forward" not in vars(module) for module, kind in computes)
        and not any(hooks(module) for module, _ in computes)
        and component.adds_residual == unit.residual
        and len(own) == len(banks)
        and all(one is other for one, other in zip(own, banks, strict=True))
    )


def _idle(twin: TwinBridge, unit: ReplacedMLP) -> list[tuple[nn.Module, type[nn.Module]]]:
    """What has to hand on what it is given: where the parts of an MLP sit in the layer, the first answers for all."""
    if unit.site.inside is None:
        return []
    owner, name = activation_of(unit.site, network_module(called(twin.original_model, unit.site.path)))
    activation = getattr(owner, name)
    *middle, last = (called(twin.original_model, path) for path in unit.paths[1:])
    return [
        *((value, OneBridge) for value in middle),
        (activation, PassingBridge if isinstance(activation, PassingBridge) else nn.Identity),
        (last, PassingBridge),
    ]


def hooked(twin: TwinBridge, replaced: Sequence[ReplacedMLP]) -> list[str]:
    """Hook points of the banks, and of what bridges them, at which somebody has a function."""
    points = [point for layer in twin.layers for point in hook_points(layer.bank.hooks)]
    for unit in replaced:
        component = called(twin.original_model, unit.reads)
        if isinstance(component, HeadBankBridge):
            points += [*hook_points(component), *component.begins, *component.written, *component.ends]
    found = {id(point): f"{point.name}: {hooks(point)} hooks in the twin" for point in points if hooks(point)}
    return list(found.values())


def bank_faults(mlp: MLP, layer: Layer, domain: Domain, tolerance: float) -> list[str]:
    """What is wrong with a bank before anything is run: heads that are not the source's, gates that are not certified.

    ``domain`` is what the source says of its preactivations, and ``tolerance`` what the twin says of its gates.
    """
    bank, faults = layer.bank, changed_heads(mlp, layer.bank)
    gates = certificate(mlp.computed, bank.gates)
    if gates is None:
        faults.append(f"its gates have no certificate for {mlp.computed.name}")
    else:
        if bank.gates != gates:
            said = f"{bank.gates.activation.name}, error {bank.gates.max_error:.2e}, domain {bank.gates.domain:g}"
            proved = f"{gates.activation.name}, error {gates.max_error:.2e}, domain {gates.domain:g}"
            faults.append(f"its gates claim {said}; certified are {proved}")
        # Rounded factors add a little to the error of a fit.
        if gates.max_error > 1.1 * tolerance * max(1.0, mlp.scale_out):
            faults.append(f"its gates are certified to {gates.max_error:.2e}, the twin's tolerance is {tolerance:.2e}")
        if needs_domain(mlp) and domain.by_theorem and domain.limit > gates.domain * (1 + 1e-9):
            faults.append(f"its gates hold up to {gates.domain:g}, and inputs reach {domain.limit:g}")
    known = layer.domain
    if known.by_theorem != domain.by_theorem or not math.isclose(known.limit, domain.limit, rel_tol=_SAME_DOMAIN):
        faults.append(f"the twin says that preactivations end at {_end(known)}; those of the source at {_end(domain)}")
    if bank.pattern_dtype not in (None, torch.float32, torch.float64):
        faults.append(f"its patterns are in {str(bank.pattern_dtype).removeprefix('torch.')}, which is too coarse")
    return faults


def _end(domain: Domain) -> str:
    return f"{domain.limit:g} {'by theorem' if domain.by_theorem else 'as measured'}"


def changed_heads(mlp: MLP, bank: HeadBank) -> list[str]:
    """Weights of a bank's heads that are not those that the source's MLP makes with the same gates, in words."""
    fresh, found = mlp.heads(bank.gates), dict[str, str]()
    if bank.edited is not None:
        layout, edited = EditedHeads.layout(fresh.weights(torch.float64)), dict(bank.edited.named_parameters())
        phrases = {name: difference(layout[name], edited.get(name)) for name in layout}
        return [f"{name} of its edited heads: {phrase}" for name, phrase in phrases.items() if phrase]
    # Coefficients of the gates are kept for each dtype of the patterns.
    for dtype in (None, torch.float32, torch.float64):
        mine, theirs = fresh.weights(dtype), bank.weights(dtype)
        for field in fields(mine):
            phrase = difference(getattr(mine, field.name), getattr(theirs, field.name))
            if phrase is not None:
                found[field.name] = phrase
    return [f"{name} of its heads: {phrase}" for name, phrase in found.items()]
