"""All MLPs of a model, read and checked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from allheads.errors import AllHeadsError
from allheads.heads.mixture import MixtureBank
from allheads.models.attention import attention_layers, is_attention
from allheads.models.compat import network_module
from allheads.models.experts import read_experts
from allheads.models.find_mlps import locate_mlps
from allheads.models.formulas import MLPFormula
from allheads.models.graft import HeadBankBridge, PassingBridge
from allheads.models.mlps import ReplacedMLP, read_containerless, read_module


def read_mlps(source: TransformerBridge, body: nn.Module) -> list[ReplacedMLP]:
    """Every MLP and every stack of experts; ``body`` is the source's network without its bridge.

    There are none in a model of attention alone. Raises `AllHeadsError` naming the layer if one is of a kind that is
    not known, or has weights that are not finite, and for a model whose layers have something else.
    """
    earlier: list[MLPFormula] = []
    replaced = []
    for found in locate_mlps(source, body):
        module = body.get_submodule(found.path)
        if found.experts:
            replaced.append(read_experts(found, module))
        elif found.inside is not None:
            replaced.append(read_containerless(found, module))
        else:
            replaced.append(read_module(found, module, earlier))
    if not replaced and (others := untouched_modules(source)):
        raise AllHeadsError(
            "a transformer with MLPs of a known kind",
            f"{source.cfg.architecture}, whose layers have {', '.join(others)}",
            "State-space and recurrent layers have none; experts and MLPs of other kinds are not read yet.",
        )
    return replaced


def untouched_modules(model: TransformerBridge) -> list[str]:
    """What has matrices in the layers of a model and is neither attention nor a bank of heads, by name in its layer.

    In a twin that is what stays as it is: routers, mixers of another kind, gates that are no MLP's.
    """
    return list(dict.fromkeys(name for name, _ in _untouched(model)))


def routers(twin: TransformerBridge) -> Iterator[tuple[str, nn.Module]]:
    """What weighs the experts of a twin, by path: modules beside a stack of experts that are no heads."""
    others = {id(module) for _, module in _untouched(twin)}
    for path, module in twin.original_model.named_modules():
        children = {name: network_module(child) for name, child in network_module(module).named_children()}
        if any(isinstance(child._modules.get("heads"), MixtureBank) for child in children.values()):
            for name, child in children.items():
                if any(id(part) in others for part in child.modules()):
                    yield f"{path}.{name}", child


def mixers(twin: TransformerBridge) -> Iterator[tuple[str, nn.Module]]:
    """What is neither attention nor heads in the layers of a twin, and does not weigh experts, by path.

    State spaces, convolutions, recurrences: what a layer calls beside attention and neurons; and attention of which
    the bridge has no component, so that nothing shows its heads.
    """
    others = {id(module) for _, module in _untouched(twin)}
    known = {id(layer.module.original_component) for layer in attention_layers(twin)}
    known |= {id(module) for _, module in routers(twin)}
    for path, layers in twin.original_model.named_modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        for number, layer in layers.named_children():
            for name, child in network_module(layer).named_children():
                parts = [network_module(child), *network_module(child).modules()]
                mixes = any(id(part) in others or is_attention(part) for part in parts)
                if mixes and not any(id(part) in known or "heads" in part._modules for part in parts):
                    yield f"{path}.{number}.{name}", network_module(child)


def _untouched(model: TransformerBridge) -> Iterator[tuple[str, nn.Module]]:
    attention = {id(component.module.original_component) for component in attention_layers(model)}

    def visit(module: nn.Module, name: str | None) -> Iterator[tuple[str, nn.Module]]:
        heads = isinstance(module, (HeadBankBridge, PassingBridge))
        module = network_module(module)
        if heads or id(module) in attention or is_attention(module):
            return
        if name and any(p.ndim >= 2 for p in module.parameters(recurse=False)):
            yield name, module
        for part, child in module.named_children():
            inner = None if name is None else f"{name}.{part}".lstrip(".")
            yield from visit(child, "" if isinstance(module, nn.ModuleList) else inner)

    yield from visit(model.original_model, None)
