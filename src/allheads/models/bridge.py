"""From a source to a bridge of its own over the same weights: what a twin begins as."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import JointGateUpMLPBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources import build_bridge_from_module

#: What a bridge's configuration says about text, and about where its code came from; a network does not say it.
_SAID = (
    *("d_vocab", "d_vocab_out", "default_prepend_bos", "tokenizer_prepends_bos", "tokenizer_appends_eos"),
    "trust_remote_code",
)

__all__ = ["ActivationCache", "TransformerBridge", "bridge", "give_memory", "processed", "share", "splits_projections"]


def share(source: TransformerBridge) -> nn.Module:
    """A copy of the source's network without bridge components, over the same weight memory.

    Parameters are new objects: casting or moving one network leaves the other alone, and gradients are its own.
    Values are shared, so training in place changes both.
    """
    model = source.original_model
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        shared = tensor.detach()
        memo[id(tensor)] = (
            nn.Parameter(shared, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shared
        )
    # Children before parents: a copied module then meets its unwrapped children in the memo.
    for module in reversed(list(model.modules())):
        # A component without a name stands for parts of the layer it sits in, and wraps that layer.
        if (
            isinstance(module, GeneralizedComponent)
            and module.name is not None
            and module.original_component is not None
        ):
            memo[id(module)] = copy.deepcopy(module.original_component, memo)
    body = copy.deepcopy(model, memo)
    for module in body.modules():
        # Some components patch what they wrap; the copy is to compute as the architecture does.
        for name in [name for name, value in vars(module).items() if _patched(value) and hasattr(type(module), name)]:
            delattr(module, name)
    return body


def _patched(value: Any) -> bool:
    return callable(value) and str(getattr(value, "__module__", "")).startswith("transformer_lens")


def bridge(source: TransformerBridge, body: nn.Module) -> TransformerBridge:
    """Bridge a copy of the source's network; its MLPs are still there."""
    # Networks of TransformerLens' own have no configuration of transformers.
    config = getattr(body, "config", None)
    made = build_bridge_from_module(
        body,
        architecture=source.cfg.architecture,
        hf_config=config,
        tl_config=copy.deepcopy(source.cfg) if config is None else None,
        dtype=source.cfg.dtype,
        model_name=source.cfg.model_name,
    )
    # The tokenizer is set up already: once more, it would be looked for under its name, which one in memory has not.
    made.tokenizer = source.tokenizer
    for name in _SAID:
        setattr(made.cfg, name, getattr(source.cfg, name))
    return made


def give_memory(bridged: TransformerBridge) -> None:
    """Let a bridge have its parameters to itself: nobody else sees what is written into them."""
    for parameter in bridged.original_model.parameters():
        parameter.data = parameter.data.clone()


def processed(source: TransformerBridge, **options: bool) -> TransformerBridge:
    """The source with its weights processed by TransformerLens, as a bridge of its own."""
    made = bridge(source, share(source))
    give_memory(made)
    made.enable_compatibility_mode(disable_warnings=True, **options)
    return made


def splits_projections(model: TransformerBridge) -> bool:
    """Does the bridge compute with parts of joint projections, which it processes, and the network with the whole?"""
    return any(isinstance(module, JointGateUpMLPBridge) for module in model.modules())
