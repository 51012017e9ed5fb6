"""Heads of a twin as `Heads` of the pure form: those of neurons as they are, ordinary ones as their patterns show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.gates.activations import Activation
from allheads.gates.approximation import approximate
from allheads.heads.bank import HeadBank
from allheads.heads.edited import EditedHeads
from allheads.models import norms
from allheads.models.attention import Attention, read_attention
from allheads.models.norms import known_norm, norm_modules
from allheads.pure.masks import Masks
from allheads.pure.runner import Heads, Norm, allowed, patterns, scores
from allheads.pure.streams import rows
from allheads.twin.scores import as_they_carry, as_they_turn
from allheads.twin.segments import CutRun
from allheads.twin.sites import Site
from allheads.twin.twin import TwinBridge


def pure_norm(norm: norms.Norm) -> Norm:
    """The norm in the file's form."""
    return Norm(norm.gain, norm.shift, norm.centred, norm.eps)


def neuron_heads(bank: HeadBank) -> list[Heads]:
    """One entry per part of the neurons: heads of a part have equally many bias tokens."""
    weights = bank.weights(torch.float64)
    groups: list[Heads] = []
    for number in range(weights.parts):
        tensors: dict[str, Any] = EditedHeads.layout(weights.part(number))
        tokens = {name: tensors.pop(name)[:, : weights.tokens(number)] for name in ("bias_keys", "bias_offsets")}
        W_O, b_O = tensors.pop("W_O"), tensors.pop("b_O")
        groups.append(Heads(W_O=W_O, **tokens, **{name: tensor for name, tensor in tensors.items() if tensor.any()}))
    return [*groups, *constant(b_O)]


def dense_heads(twin: TwinBridge, path: str, activation: Activation) -> list[Heads]:
    """A dense layer that ends in an activation: neurons whose output projection is the identity."""
    module: Any = twin.original_model.get_submodule(path)
    weights = {"W_in": module.weight.mT, "W_out": torch.eye(len(module.weight)).to(module.weight)}
    weights |= {} if module.bias is None else {"b_in": module.bias}
    return neuron_heads(HeadBank(weights, approximate(activation, tolerance=twin.tolerance)))


def constant(b_O: Tensor | None) -> list[Heads]:
    """An output bias as one more head: it attends to its own token, and its value is 1."""
    if b_O is None or not b_O.any():
        return []
    return [Heads(W_O=b_O.detach()[None, None], b_V=b_O.new_ones(1, 1))]


def attention_heads(run: CutRun, site: Site, seen: Masks) -> list[Heads]:
    """The ordinary heads of a sublayer. Raises `AllHeadsError` unless their patterns and values are what these give."""
    layer = run.twin.index.attention[site.location.stem, site.kind]
    declared = read_attention(run.twin, layer)
    weights = as_they_turn(run, site, declared)
    first = weights is None
    if weights is None:
        weights = _turned_first(run, site, declared)
    if weights is None:
        raise refused(site.name, "queries and keys that are compared in another way")
    carried = as_they_carry(run, site, weights)
    if carried is None or carried.gated or carried.norm_V is not None:
        raise refused(site.name, "values that are not x W_V + b_V")
    cap = getattr(layer.module.original_component, "attn_logit_softcapping", None)
    mask: dict[str, Any] = _mask(seen, site)
    heads = _heads(weights, turned_first=first, cap=cap, **mask)
    return [_with_offsets(run, site, heads, seen), *constant(weights.b_O)]


def _turned_first(run: CutRun, site: Site, declared: Attention) -> Attention | None:
    """The same with norms of each head's queries and keys, if patterns show that these turn before their norms."""
    module = run.twin.index.attention[site.location.stem, site.kind].module.original_component
    inner = [known_norm(norm, declared.W_Q.shape[2]) for _, norm in norm_modules(module)]
    pattern = run.seen.get(f"{site.location.prefix}hook_pattern")
    x = run.reads.get(f"{site.name}.Q")
    if pattern is None or x is None or site.kind != "A":
        return None
    for norms_of in itertools.permutations([norm for norm in inner if norm is not None], 2):
        weights = replace(declared, norm_Q=norms_of[0], norm_K=norms_of[1])
        heads = _heads(weights, turned_first=True).to(torch.float64)
        ours = patterns(rows(x)[0], heads, pattern[0] > 0)
        if ours.shape == pattern[0].shape and float((ours - pattern[0]).abs().max()) <= run.tolerance:
            return weights
    return None


def _heads(weights: Attention, **more: Any) -> Heads:
    """The heads without mask and offsets."""
    return Heads(
        W_O=weights.W_O,
        W_Q=weights.W_Q,
        W_K=weights.W_K,
        W_V=weights.W_V,
        b_Q=weights.b_Q,
        b_K=weights.b_K,
        b_V=weights.b_V,
        norm_Q=None if weights.norm_Q is None else pure_norm(weights.norm_Q),
        norm_K=None if weights.norm_K is None else pure_norm(weights.norm_K),
        rotary=weights.rotary,
        interleaved=weights.interleaved,
        scale=weights.scale,
        rotary_scale=weights.rotary_scale,
        **more,
    )


def refused(name: str, what: str) -> AllHeadsError:
    """What is not a sum of heads and norms, by name."""
    return AllHeadsError("parts that are norms, attention and matrices only", f"{name} with {what}", "Not exported.")


def _mask(seen: Masks, site: Site) -> dict[str, Any]:
    """The mask and window that show what longer texts show."""
    visible = seen.visible[site.name]
    ahead = torch.arange(visible.shape[0])[:, None] - torch.arange(visible.shape[1])
    causal = site.kind == "A" and not bool(visible[ahead < 0].any())
    mask: dict[str, Any] = {"mask": "causal" if causal else "all", "window": seen.window(site.name)}
    like = Heads(torch.zeros(1, 1, 1), **mask)
    if not torch.equal(allowed(like, *visible.shape)[0], visible):
        raise refused(site.name, "a mask that is neither causal nor a window")
    return mask


def _with_offsets(run: CutRun, site: Site, heads: Heads, seen: Masks) -> Heads:
    """The heads with what their scores have beside queries and keys: a number for each distance, and a sink."""
    x, other = (rows(run.reads[f"{site.name}.{side}"])[0] for side in "QV")
    pattern = run.seen[f"{site.location.prefix}hook_pattern"][0].double()
    logs, visible = pattern.clamp_min(1e-300).log(), pattern > 0
    shown = logs - scores(x, heads.to(torch.float64), other)
    start = shown.diagonal(dim1=-2, dim2=-1)[..., None] if site.kind == "A" else shown[..., :1]
    offsets = (shown - start).masked_fill(~visible, 0.0)
    if float(offsets.abs().max()) > 4 * run.tolerance:
        known = (*seen.tables, *_slopes(offsets, seen.n_ctx))
        table = next((table for table in known if _shows(table, offsets, visible, run)), None)
        if table is None:
            raise refused(site.name, "scores that depend on positions in another way than by distance")
        heads = replace(heads, distance_offsets=table)
    missing = (1.0 - pattern.sum(-1)).clamp_min(0.0)
    if float(missing.max()) > run.tolerance:  # what is left goes to a token without a value
        most = missing.argmax(-1, keepdim=True)  # least lost to rounding
        offset = (missing.log() - start[..., 0]).gather(-1, most)
        heads = replace(heads, bias_keys=heads.W_O.new_zeros(len(offset), 1, heads.W_O.shape[1]), bias_offsets=offset)
    return heads


def _slopes(offsets: Tensor, n_ctx: int) -> Iterator[Float[Tensor, "head distance"]]:
    """The same of a slope for each head: rounded to the powers of two that ALiBi has, and as it shows."""
    distance = torch.arange(offsets.shape[-1]) - torch.arange(offsets.shape[-2])[:, None]
    slopes = (offsets * distance).sum((1, 2)) / (distance.square() * (offsets != 0)).sum((1, 2)).clamp_min(1)
    rounded = 2.0 ** ((slopes.abs().log2() * len(slopes) / 4).round() * 4 / len(slopes)) * slopes.sign()
    for chosen in (rounded, slopes):
        yield chosen[:, None] * torch.arange(1 - n_ctx, n_ctx)


def _shows(table: Tensor, offsets: Tensor, visible: Tensor, run: CutRun) -> bool:
    """Are these the offsets, less that of a query's own position?"""
    if len(table) != len(offsets):
        return False
    distance = torch.arange(offsets.shape[-1]) - torch.arange(offsets.shape[-2])[:, None]
    middle = table.shape[1] // 2
    ours = (table[:, distance + middle] - table[:, middle, None, None]).masked_fill(~visible, 0.0)
    return float((ours - offsets).abs().max()) <= 4 * run.tolerance * max(1.0, float(offsets.abs().max()))
