"""Three evaluations of the same heads, tested against each other.

``attention``  literal: scores against all N positions and B bias tokens, a mask, a softmax, a sum over values,
               through torch's `scaled_dot_product_attention`. The referee; quadratic in N.
``slots``      the softmax over what the mask leaves: the token itself and the bias tokens. Linear in N, and
               the one that hooks see.
``closed``     the sum of a neuron's heads collapsed to the activation it equals or approximates. The fastest,
               and the source's own arithmetic: it proves nothing.

A ``scale`` for each position multiplies every value and the layer's bias: a router's weight, in a mixture of experts.
How far rounding can drive them apart is bounded in `allheads.heads.rounding`.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint

from allheads.gates.activations import Activation
from allheads.heads.hooks import HeadHooks
from allheads.heads.weights import HeadWeights

Evaluation = Literal["attention", "slots", "closed"]

#: Scores worked on at a time, so that they stay in the processor's cache.
CHUNK = 2**19


def closed(
    heads: HeadWeights,
    x: Float[Tensor, "batch pos d_model"],
    at: HeadHooks,
    activation: Activation,
    scale: Float[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """``f(t) W_O`` for plain neurons, ``(f(g) u) W_O`` for gated ones."""
    t, u = projections(heads, x, at)
    post = activation(t[..., 0, :]) if heads.W_V is None else activation(t[..., 0, :]) * u[..., 0, :]
    return written(heads, at.hook_post(post if scale is None else (post * scale[..., None]).to(post.dtype)), scale)


def slots(
    heads: HeadWeights,
    x: Float[Tensor, "batch pos d_model"],
    at: HeadHooks,
    pattern_dtype: torch.dtype,
    scale: Float[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Softmax over self and bias tokens, in ``pattern_dtype``; ``scale`` multiplies every value."""
    stream, x = x.dtype, read_in(heads, x, pattern_dtype)
    t, u = projections(heads, x, at)
    q = per_head(t.to(pattern_dtype), heads.parts, at.hook_q)
    alpha, delta = (factor.to(pattern_dtype)[:, None] for factor in (heads.alpha, heads.delta))
    v = torch.addcmul(delta, alpha, u.to(pattern_dtype))
    v = per_head(v if scale is None else v * scale[..., None, None].to(v.dtype), heads.parts, at.hook_v)
    if at.watched("hook_attn_scores", "hook_pattern"):
        pattern = _watched_patterns(heads, x, q, at)
    else:
        pattern = patterns_on_self(heads, x, q)
    if at.watched("hook_pattern_self"):
        pattern = _split(at.hook_pattern_self(rearrange(pattern, "b p h n -> b (h n) p")), heads.parts)
    z = per_head(pattern * v, heads.parts, at.hook_z)
    return sum_of_heads(heads, z, at, stream, scale)


def attention(
    heads: HeadWeights,
    x: Float[Tensor, "batch pos d_model"],
    at: HeadHooks,
    pattern_dtype: torch.dtype,
    scale: Float[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Every head over every position, masked: what an attention layer would literally do."""
    stream, x, length = x.dtype, read_in(heads, x, pattern_dtype), x.shape[1]
    t, u = (projected.to(pattern_dtype) for projected in projections(heads, x, at))
    keys = _self_keys(heads, x, pattern_dtype)
    z = []
    for part in range(heads.parts):
        count = heads.tokens(part)
        mask = torch.cat([torch.eye(length), torch.ones(length, count)], 1).bool().to(x.device)
        key = heads.bias_keys[part, :, :count].expand(heads.neurons, count)
        offset = heads.bias_offsets[part, :, :count].expand(heads.neurons, count)
        bias_keys = torch.stack([key, offset], -1).to(pattern_dtype).expand(x.shape[0], -1, -1, -1)
        query = t[..., part % t.shape[2], :]
        # An added coordinate of 1 carries the offset from the mask into the keys.
        queries = rearrange(torch.stack([query, torch.ones_like(query)], -1), "b p n d -> b n p d")
        self_key = torch.zeros_like(query) if keys is None else keys[..., part, :]
        own_keys = rearrange(torch.stack([self_key, torch.zeros_like(query)], -1), "b p n d -> b n p d")
        value = heads.alpha[part].to(pattern_dtype) * u[..., part % u.shape[2], :] + heads.delta[part].to(pattern_dtype)
        value = value if scale is None else value * scale[..., None].to(value.dtype)
        values = F.pad(rearrange(value, "b p n -> b n p 1"), (0, 0, 0, count))
        out = F.scaled_dot_product_attention(
            queries, torch.cat([own_keys, bias_keys], 2), values, attn_mask=mask, scale=1.0
        )
        z.append(rearrange(out, "b n p 1 -> b p n"))
    return sum_of_heads(heads, torch.stack(z, 2), at, stream, scale)


def read_in(heads: HeadWeights, x: Tensor, pattern_dtype: torch.dtype) -> Tensor:
    """Edited heads have the gates' large coefficients folded into their values: they read in the patterns' dtype."""
    return x.to(pattern_dtype) if heads.edited else x


def projections(heads: HeadWeights, x: Tensor, at: HeadHooks) -> tuple[Tensor, Tensor]:
    """Query and value inputs, ``[batch pos part|1 neuron]``; the hooks on them fire while they are shared."""
    t = _project(x if heads.edited else at.hook_query_in(x), heads.W_Q, heads.b_Q)
    if not heads.edited:
        t = at.hook_pre(t[..., 0, :])[..., None, :]
    if heads.W_V is None:
        return t, t
    u = _project(x if heads.edited else at.hook_value_in(x), heads.W_V, heads.b_V)
    if not heads.edited:
        u = at.hook_pre_linear(u[..., 0, :])[..., None, :]
    return t, u


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "batch pos part|1 neuron"]:
    flat = F.linear(x, weight.flatten(0, 1).to(x.dtype), None if bias is None else bias.flatten().to(x.dtype))
    return flat.unflatten(-1, weight.shape[:2])


def _self_keys(heads: HeadWeights, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    return None if heads.W_K is None else _project(x, heads.W_K, heads.b_K).to(dtype)


def per_head(tensor: Tensor, parts: int, hook: HookPoint) -> Tensor:
    """Show ``[batch pos part neuron]`` to a hook as ``[batch pos head 1]``."""
    if not hook.has_hooks():
        return tensor
    flat = tensor.expand(-1, -1, parts, -1).flatten(2)[..., None]
    return hook(flat)[..., 0].unflatten(2, (parts, -1))


def _split(per_head: Float[Tensor, "batch head pos"], parts: int) -> Float[Tensor, "batch pos part neuron"]:
    return rearrange(per_head, "b (h n) p -> b p h n", h=parts)


def slot_scores(
    heads: HeadWeights, part: int, q: Float[Tensor, "row neuron"], self_key: Tensor | None
) -> Float[Tensor, "slot row neuron"]:
    """Scores of one part's heads: of the token itself (0 without a key), then of its bias tokens.

    >>> weights = twin.banks[3].weights()
    >>> slot_scores(weights, 0, torch.ones(5, 1024), None).shape  # the token, 8 bias tokens
    torch.Size([9, 5, 1024])
    """
    keys, offsets = (F.pad(table, (0, 0, 0, 0, 1, 0)) for table in _bias_scores(heads, part, q.dtype))
    if self_key is not None:
        keys = torch.cat([self_key[None], keys[1:].expand(-1, *q.shape)])
    return torch.addcmul(offsets, keys, q)


def _bias_scores(heads: HeadWeights, part: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and offsets of one part's bias tokens, ``[token 1 neuron|1]``: their scores are ``offset + key q``."""
    count = heads.tokens(part)
    keys, offsets = heads.bias_keys[part, :, :count], heads.bias_offsets[part, :, :count]
    return keys.to(dtype).T[:, None], offsets.to(dtype).T[:, None]


def patterns_on_self(heads: HeadWeights, x: Tensor, q: Tensor) -> Float[Tensor, "batch pos part neuron"]:
    """The softmax's weight on self, a few rows at a time: no N x slots tensor is kept."""
    self_keys = _self_keys(heads, x, q.dtype)
    kept = torch.is_grad_enabled()
    weight, slots = (_kept_weight, 1 + heads.bias_keys.shape[2]) if kept else (_weight, 1)
    count, step = q.shape[0] * q.shape[1], max(1, CHUNK // (heads.neurons * slots))
    spans = [slice(start, start + step) for start in range(0, count, step)]

    def of(part: int, span: slice) -> Tensor:
        query = q[..., part % q.shape[2], :].flatten(0, 1)[span]
        key = None if self_keys is None else self_keys[..., part, :].flatten(0, 1)[span]
        return weight(heads, part, query, key)

    if kept:
        pattern = torch.stack([torch.cat([of(part, span) for span in spans]) for part in range(heads.parts)], 1)
    else:
        pattern = q.new_empty(count, heads.parts, heads.neurons)
        for part, span in product(range(heads.parts), spans):
            pattern[span, part] = of(part, span)
    return pattern.unflatten(0, q.shape[:2])


def _kept_weight(heads: HeadWeights, part: int, q: Tensor, self_key: Tensor | None) -> Tensor:
    """For gradients: torch's softmax keeps its result for the way back."""
    return slot_scores(heads, part, q, self_key).softmax(0)[0]


def _weight(heads: HeadWeights, part: int, q: Tensor, self_key: Tensor | None) -> Tensor:
    """``1 / sum_s exp(score_s - score_self)``: the same softmax, a slot at a time, several times as fast.

    Without a maximum taken off, because of one term alone: where others overflow, the inverse of infinity is the 0 that
    it rounds to. (Its gradient would be NaN there.)
    """
    total, score = torch.ones_like(q), torch.empty_like(q)
    for key, offset in zip(*_bias_scores(heads, part, q.dtype), strict=True):
        torch.addcmul(offset, key, q, out=score)
        total += (score if self_key is None else score.sub_(self_key * q)).exp_()
    return total.reciprocal_()


def _watched_patterns(heads: HeadWeights, x: Tensor, q: Tensor, at: HeadHooks) -> Tensor:
    """The same with all scores and patterns laid out for hooks; unused slots hold -inf and 0."""
    self_keys = _self_keys(heads, x, q.dtype)
    width = 1 + max(heads.tokens(part) for part in range(heads.parts))
    parts = []
    for part in range(heads.parts):
        key = None if self_keys is None else self_keys[..., part, :].flatten(0, 1)
        scores = slot_scores(heads, part, q[..., part % q.shape[2], :].flatten(0, 1), key)
        parts.append(F.pad(scores.movedim(0, -1), (0, width - len(scores)), value=-torch.inf))
    scores = rearrange(torch.stack(parts), "h (b p) n s -> b (h n) p s", b=x.shape[0])
    pattern = at.hook_pattern(at.hook_attn_scores(scores).softmax(-1))
    return _split(pattern[..., 0], heads.parts)


def sum_of_heads(
    heads: HeadWeights,
    z: Float[Tensor, "batch pos part neuron"],
    at: HeadHooks,
    stream: torch.dtype,
    scale: Float[Tensor, "batch pos"] | None,
) -> Float[Tensor, "batch pos d_model"]:
    """Sum a neuron's heads in the dtype of their patterns, then write in that of the stream."""
    if at.watched("hook_result"):
        W_O = heads.W_O.expand(heads.parts, -1, -1).flatten(0, 1).to(z.dtype)
        out = at.hook_result(z.flatten(2)[..., None] * W_O).sum(2).to(stream)
        if heads.edited:
            return _biased(heads, out, scale)
        # The results are the heads' own; what a hook changes in their sum comes on top.
        post = z.sum(2).to(stream)
        return _biased(heads, out, scale) + F.linear(at.hook_post(post) - post, heads.W_O[0].T)
    if heads.edited:
        return _biased(heads, F.linear(z.flatten(2), heads.W_O.flatten(0, 1).T.to(z.dtype)).to(stream), scale)
    return written(heads, at.hook_post(z.sum(2).to(stream)), scale)


def written(heads: HeadWeights, post: Float[Tensor, "batch pos neuron"], scale: Tensor | None) -> Tensor:
    """What neurons with these activations write into the stream, with the layer's bias."""
    if scale is None:
        return F.linear(post, heads.W_O[0].T, heads.b_O)
    return _biased(heads, F.linear(post, heads.W_O[0].T), scale)


def _biased(heads: HeadWeights, out: Tensor, scale: Tensor | None) -> Tensor:
    """A layer's bias is scaled like its values."""
    if heads.b_O is None:
        return out
    return out + heads.b_O if scale is None else out + scale[..., None].to(out.dtype) * heads.b_O
