"""Are a layer's patterns and values what its weights give? Compared on what a run has seen, candidate by candidate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.models.attention import Attention, rotated
from allheads.models.norms import Norm, known_norm, norm_modules
from allheads.twin.segments import CutRun
from allheads.twin.sites import Site, by_head

#: A way to turn: frequencies, and whether neighbours turn together.
Turn = tuple[Tensor | None, bool]


def as_they_turn(run: CutRun, site: Site, weights: Attention) -> Attention | None:
    """The attention of a site with the rotary, the norms and the scale that its patterns show; None if there are none.

    Logarithms of a row of the pattern are its scores, up to a constant. What positions alone add, such as ALiBi, is
    the same in two rows of input: what is compared is how their scores differ, for every query and key.
    """
    seen = _seen(run, site, weights)
    if seen is None:
        return None
    x_q, x_k, pattern = seen
    module = run.twin.index.attention[site.location.stem, site.kind].module
    visible = (pattern > 1e-30).all(0, keepdim=True)
    theirs = _rows_apart(pattern.clamp_min(1e-300).log(), visible)
    cap = getattr(module.original_component, "attn_logit_softcapping", None)
    for norms, turn in itertools.product(_norms(module, weights), _turns(run, weights)):
        declared = weights.scale * (weights.rotary_scale**2 if turn[0] is not None else 1.0)
        made = replace(weights, norm_Q=norms[0], norm_K=norms[1], rotary=turn[0], interleaved=turn[1])
        scores = _scores(made, x_q, x_k)
        ours = _rows_apart(declared * scores if cap is None else cap * torch.tanh(declared * scores / cap), visible)
        factor = float((ours * theirs).sum() / ours.square().sum().clamp_min(1e-300))
        if abs(factor - 1.0) <= 4 * run.tolerance:
            factor = 1.0
        elif cap is not None or not factor > 0:
            continue
        noise = 8 * torch.finfo(run.seen[f"{site.location.prefix}hook_pattern"].dtype).eps
        if bool((factor * ours - theirs).abs().max() <= 4 * run.tolerance * theirs.abs().max() + noise):
            rotary_scale = weights.rotary_scale if turn[0] is not None else 1.0
            return replace(made, scale=weights.scale * factor, rotary_scale=rotary_scale)
    return None


def as_they_carry(run: CutRun, site: Site, weights: Attention) -> Attention | None:
    """The attention of a site with the norm of its values, or the gates, that what its heads carry shows; None if no
    pattern times values is seen in that.
    """
    seen, z = _seen(run, site, weights), run.seen.get(f"{site.location.prefix}hook_z")
    if seen is None or z is None:
        return None
    module = run.twin.index.attention[site.location.stem, site.kind].module
    z, ours = by_head(z, site.count).double(), torch.empty(0)
    for norm in (None, *_norms_of(module, weights, weights.W_V.shape[2])):
        made = replace(weights, norm_V=norm)
        ours = (seen[2] @ made.projected(seen[1], "V").movedim(-2, 1)).movedim(1, 2)
        if z.ndim == 3 and z.shape[-1] == ours.shape[2:].numel():
            z = z.view_as(ours)
        if z.shape == ours.shape and bool((ours - z).norm() <= 4 * run.tolerance * z.norm()):
            return made
        if z.shape == ours.shape and _gated(run, site, seen[2], z / ours):
            return replace(made, gated=True)
    return None


def _gated(run: CutRun, site: Site, pattern: Tensor, gates: Float[Tensor, "batch query head d_head"]) -> bool:
    """Do values go through a pattern and through these gates, and do the gates not answer to the values?"""
    v, z = (run.carried.get(f"{site.location.prefix}hook_{name}") for name in "vz")
    if v is None or z is None or not bool((gates > 0).all()):  # nan is not
        return False
    back = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    (found,) = torch.autograd.grad(z, v, back, retain_graph=True, allow_unused=True)
    if found is None:
        return False
    through = torch.einsum("bhqk,bqhe->bkhe", pattern, gates * back.double().view_as(gates))
    groups = found.numel() // through[:, :, 0].numel()
    expected = through.unflatten(2, (groups, -1)).sum(3).reshape(found.shape)
    return bool((found.double() - expected).norm() <= 4 * run.tolerance * expected.norm())


def _seen(run: CutRun, site: Site, weights: Attention) -> tuple[Tensor, Tensor, Tensor] | None:
    """What queries and keys read, and the pattern, in float64, if they have the shapes that weights ask for."""
    x_q, x_k = run.reads.get(f"{site.name}.Q"), run.reads.get(f"{site.name}.V")
    pattern = run.seen.get(f"{site.location.prefix}hook_pattern")
    if x_q is None or x_k is None or pattern is None or x_q.ndim != 3 or x_k.ndim != 3 or len(x_q) != 2:
        return None
    shape = (len(x_q), len(weights.W_Q), x_q.shape[1], x_k.shape[1])
    fits = all(x.shape[-1] == W.shape[1] for x, W in ((x_q, weights.W_Q), (x_k, weights.W_K), (x_k, weights.W_V)))
    if tuple(pattern.shape) != shape or not fits or weights.W_Q.shape[2] != weights.W_K.shape[2]:
        return None
    return x_q.detach().double(), x_k.detach().double(), pattern.double()


def _scores(weights: Attention, x_q: Tensor, x_k: Tensor) -> Float[Tensor, "batch head query key"]:
    """Scores without their scale."""
    sides = [weights.projected(x, side).movedim(-2, 1) for x, side in ((x_q, "Q"), (x_k, "K"))]
    if weights.rotary is not None:
        sides = [
            torch.stack([rotated(t[:, :, p], [p], weights.rotary, weights.interleaved) for p in range(t.shape[2])], 2)
            for t in sides
        ]
    return sides[0] @ sides[1].mT


def _rows_apart(scores: Tensor, visible: Tensor) -> Float[Tensor, "head query key"]:
    """How scores of two rows of input differ, less the mean over a query's keys."""
    apart = (scores[:1] - scores[1:]).masked_fill(~visible, 0.0)
    mean = apart.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp_min(1)
    return (apart - mean).masked_fill(~visible, 0.0)[0]


def _norms(module: Any, weights: Attention) -> Iterator[tuple[Norm | None, Norm | None]]:
    """No norms of queries and keys; one for each; one for both."""
    yield None, None
    found = _norms_of(module, weights, weights.W_Q.shape[2])
    yield from itertools.permutations(found, 2)
    yield from ((norm, norm) for norm in found)


def _norms_of(module: Any, weights: Attention, width: int) -> list[Norm]:
    """The norms inside a layer that can be of each head, or of all together."""
    heads, found = len(weights.W_Q), []
    for _, inner in norm_modules(module.original_component):
        lengths = [p.shape[-1] for p in inner.parameters()] or [width]
        if all(length % width == 0 and heads % (length // width) == 0 for length in lengths):
            norm = known_norm(inner, lengths[0])
            if norm is not None:
                found.append(_repeated(norm, heads, width))
    return found


def _repeated(norm: Norm, heads: int, width: int) -> Norm:
    """A norm over all keys as one over the keys of all queries, which have the same mean square."""
    if len(norm.gain) in (width, heads * width):
        return norm
    gain, shift = (
        side.view(-1, width).repeat_interleave(heads * width // len(side), 0).flatten()
        for side in (norm.gain, norm.shift)
    )
    return replace(norm, gain=gain, shift=shift)


def _turns(run: CutRun, weights: Attention) -> Iterator[Turn]:
    """Every rotary that the network has frequencies for, the declared one first; and none."""
    config: Any = getattr(run.twin.original_model, "config", None)
    known = [] if weights.rotary is None else [weights.rotary]
    known += [buffer for name, buffer in run.twin.original_model.named_buffers() if name.endswith("inv_freq")]
    width = weights.W_Q.shape[2]
    if (turning := getattr(config, "rotary_dim", None)) is not None:
        base = float(getattr(config, "rope_theta", None) or 10000.0)
        known.append(base ** -(torch.arange(0, turning, 2).double() / turning))
    kept: list[Tensor] = []
    for buffer in known:
        same = any(buffer.shape == other.shape and torch.equal(buffer, other) for other in kept)
        if buffer.ndim == 1 and 2 * len(buffer) <= width and not same:
            kept.append(buffer.detach())
    yield from ((buffer, False) for buffer in kept)
    yield from ((buffer, True) for buffer in kept)
    yield from ((-buffer, False) for buffer in kept)  # some turn the other way
    yield None, False
