"""On which interval the gates of a layer have to hold.

Gated and squared activations grow quadratically and heads only linearly, so their certificates hold on a bounded
domain. Where the MLP reads a norm, a bound holds for every input (`allheads.models.norms`); elsewhere it is
measured on random tokens with a margin, and leaving it is counted and reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from allheads.models.mlps import MLP
from allheads.models.norms import measure_norm

#: How far beyond the largest measured preactivation a measured domain reaches.
MARGIN = 4.0
_TOKENS = 16


@dataclass(frozen=True)
class Domain:
    """``|t| <= limit`` for the preactivations of a layer: for every input if ``by_theorem``."""

    limit: float
    by_theorem: bool


def needs_domain(mlp: MLP) -> bool:
    """Does the certificate of this MLP's activation end somewhere?"""
    return mlp.gated or mlp.activation.squared


def input_domains(source: TransformerBridge, body: nn.Module, mlps: list[MLP]) -> list[Domain]:
    """The domain of every layer; infinite where the activation is plain."""
    if not any(needs_domain(mlp) for mlp in mlps):
        return [Domain(math.inf, True) for _ in mlps]
    inputs, normed = _observe(source)
    return [_domain(source, body, mlp, inputs[mlp.layer], normed[mlp.layer]) for mlp in mlps]


def _domain(source: TransformerBridge, body: nn.Module, mlp: MLP, x: Tensor, normed: bool) -> Domain:
    if not needs_domain(mlp):
        return Domain(math.inf, True)
    role = "gate" if mlp.gated else "in"
    weight, bias = mlp.weight(role), mlp.bias(role)
    assert weight is not None
    if normed:
        block = source.blocks[mlp.layer]
        norm = measure_norm(body.get_submodule(f"{block.name}.{block.ln2.name}"), source.cfg.d_model)
        if norm is not None:
            return Domain(float(norm.reach(weight, bias).max()), True)
    t = x @ weight if bias is None else x @ weight + bias
    return Domain(MARGIN * float(t.abs().max()), False)


def _observe(source: TransformerBridge) -> tuple[list[Tensor], list[bool]]:
    """The MLP inputs on random tokens, and whether they are what the norm before the MLP wrote."""
    generator = torch.Generator().manual_seed(0)
    length = min(_TOKENS, source.cfg.n_ctx)
    tokens = torch.randint(source.cfg.d_vocab, (1, length), generator=generator).to(source.cfg.device)
    count = len(source.blocks)
    names = [f"blocks.{layer}.{name}" for layer in range(count) for name in ("mlp.hook_in", "ln2.hook_out")]
    known = [name for name in names if name in source.hook_dict]
    with torch.no_grad():
        _, cache = source.run_with_cache(tokens, names_filter=known)
    inputs = [cache[f"blocks.{layer}.mlp.hook_in"] for layer in range(count)]
    written = [cache.cache_dict.get(f"blocks.{layer}.ln2.hook_out") for layer in range(count)]
    normed = [w is not None and w.shape == x.shape and torch.equal(w, x) for w, x in zip(written, inputs, strict=True)]
    return inputs, normed
