"""What lies between two sublayers: through which norms they read and write, and who has written before whom.

The twin is run once on random tokens, and what its hook points saw is compared: a sublayer reads through the norm that
wrote its input, and what it adds to the stream is what the next reader finds there. Nothing is inferred from names, and
a network that is not a stream to which sublayers add is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import Attention, attention_layers, read_attention
from allheads.models.compat import named_components
from allheads.models.norms import Norm, known_norm, norm_modules
from allheads.models.observe import evaluating
from allheads.twin.capture import captured
from allheads.twin.twin import TwinBridge

_PARTS = ("attn", "mlp")


@dataclass(frozen=True)
class ResidualBranch:
    """The attention or the neurons of a layer, beside the stream.

    It reads the stream through ``before``, which holds the writes of the first ``depth`` sublayers, and adds to it
    through ``after``; None is no norm. Attention of layer l is sublayer 2l, its neurons are 2l + 1.
    """

    before: Norm | None
    after: Norm | None
    depth: int


@dataclass(frozen=True)
class Wiring:
    """Sublayers of a twin by layer, the norm before the unembedding, and the factor from ``W_E`` to the stream."""

    twin: TwinBridge
    attention: list[ResidualBranch]
    neurons: list[ResidualBranch]
    final: Norm | None
    embedding: float
    #: Layers whose scores are not ``scale (x W_Q + b_Q) R (x W_K + b_K)``: with norms of queries, with ALiBi.
    unread_scores: list[int]
    #: Layers that do not write ``sum_heads pattern (x W_V + b_V) W_O + b_O``.
    unread_values: list[int]


def read_wiring(twin: TwinBridge) -> Wiring:
    """The wiring of a twin with one stack of layers, which have attention and one MLP each.

    Raises `AllHeadsError` for any other network, and where a sublayer does not add what it writes to a stream.
    """
    twin.require_one_stack("read its weights")
    layers = range(len(twin.banks))
    if [each.location.name for each in attention_layers(twin)] != [f"blocks.{layer}.attn" for layer in layers]:
        raise AllHeadsError(
            "attention in every layer", f"{len(attention_layers(twin))} for {len(layers)}", "Not supported."
        )
    ids, cache = _run(twin)
    norms = _norms(twin, cache)
    tolerance = max(1e-4, 4 * torch.finfo(cache["unembed.hook_in"].dtype).eps)
    inputs = [_across_norm(cache, norms, f"blocks.{layer}.{part}.hook_in") for layer in layers for part in _PARTS]
    inputs.append(_across_norm(cache, norms, "unembed.hook_in"))
    attention, neurons = [], []
    for layer in layers:
        (before, start), (reads, middle), (_, end) = inputs[2 * layer : 2 * layer + 3]
        (after, attended), (behind, computed) = (
            _across_norm(cache, norms, f"blocks.{layer}.{part}.hook_out") for part in _PARTS
        )
        parallel = torch.equal(start, middle)
        writes = [attended + computed] if parallel else [attended, computed]
        steps = [end - start] if parallel else [middle - start, end - middle]
        if not all(_proportional(step, write, tolerance) for step, write in zip(steps, writes, strict=True)):
            raise AllHeadsError(
                "sublayers that add what they write to a stream", f"another kind in layer {layer}", "Not supported."
            )
        attention.append(ResidualBranch(before, after, 2 * layer))
        neurons.append(ResidualBranch(reads, behind, 2 * layer + (not parallel)))
    embedding = _embedding_factor(ids, inputs[0][1], twin.W_E.detach(), tolerance)
    weights = [read_attention(twin, layer) for layer in layers]
    unread = (
        [layer for layer in layers if differ(cache, weights[layer], layer, 4 * tolerance)]
        for differ in (_scores_differ, _values_differ)
    )
    return Wiring(twin, attention, neurons, inputs[-1][0], embedding, *unread)


def rotated(
    x: Float[Tensor, "*rows d_head"], offsets: Sequence[float], rotary: Float[Tensor, " half"] | None
) -> Float[Tensor, "*rows d_head"]:
    """Queries as a key sees them that many positions before, averaged over ``offsets``.

    Rotary turns coordinates i and i + half by ``offset rotary_i``; a mean of rotations turns and shrinks.

    >>> x = torch.tensor([1.0, 0.0, 5.0])
    >>> [rotated(x, some, torch.ones(1)).round().abs().tolist() for some in ([torch.pi / 2], [0.0, torch.pi])]
    [[0.0, 1.0, 5.0], [0.0, 0.0, 5.0]]
    """
    if rotary is None:
        return x
    half, angle = len(rotary), torch.tensor(offsets, dtype=torch.float64, device=x.device)[:, None] * rotary.double()
    first, second = x[..., :half], x[..., half : 2 * half]
    cos, sin = angle.cos().mean(0).to(x), angle.sin().mean(0).to(x)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], -1)


def _run(twin: TwinBridge) -> tuple[Int[Tensor, "2 pos"], dict[str, Tensor]]:
    """Two rows of random tokens, and what hook points saw of them."""
    ids = torch.randint(twin.cfg.d_vocab, (2, min(8, twin.cfg.n_ctx)), generator=torch.Generator().manual_seed(0))
    names = [name for name in twin.hook_dict if name.endswith((".hook_in", ".hook_out", ".attn.hook_pattern"))]
    with evaluating(twin):
        return ids, captured(twin, ids.to(twin.cfg.device), names)


def _norms(twin: TwinBridge, cache: Mapping[str, Tensor]) -> dict[str, Norm]:
    """The norms of the stream that were run, by name."""
    norms: dict[str, Norm] = {}
    scaling = {id(module) for _, module in norm_modules(twin.original_model)}
    for name, component in named_components(twin):
        module: Any = getattr(component, "original_component", None)
        # Norms inside attention act on heads.
        if id(module) in scaling and ".attn." not in name and f"{name}.hook_out" in cache:
            norm = known_norm(module, twin.cfg.d_model)
            norms |= {} if norm is None else {name: norm}
    return norms


def _across_norm(
    cache: Mapping[str, Tensor], norms: Mapping[str, Norm], name: str
) -> tuple[Norm | None, Float[Tensor, "batch pos d_model"]]:
    """The norm that a part reads through, or writes through, and the values on the norm's other side."""
    if name not in cache:
        raise AllHeadsError("sublayers with hook points", f"none at {name}", "Not supported.")
    x, side = cache[name], name.rpartition(".")[2]
    facing = "hook_out" if side == "hook_in" else "hook_in"
    for path, norm in norms.items():
        y = cache[f"{path}.{facing}"]
        if x.shape == y.shape and torch.equal(x, y):
            return norm, cache[f"{path}.{side}"].double()
    return None, x.double()


def _proportional(step: Tensor, write: Tensor, tolerance: float) -> bool:
    """Is one a positive multiple of the other, as far as the dtype shows?"""
    factor = (step * write).sum() / write.square().sum().clamp_min(1e-300)
    return bool(factor > 0) and bool((step - factor * write).norm() <= tolerance * step.norm())


def _embedding_factor(
    ids: Int[Tensor, "2 pos"], start: Tensor, W_E: Float[Tensor, "d_vocab d_model"], tolerance: float
) -> float:
    """The factor of ``W_E`` in the stream; what positions add is the same in both rows."""
    rows = W_E[ids.to(W_E.device)].double()
    step, embedded = start[0] - start[1], rows[0] - rows[1]
    if not _proportional(step, embedded, tolerance):
        raise AllHeadsError("a stream that begins with W_E", "another beginning", "Not supported.")
    return float((step * embedded).sum() / embedded.square().sum())


def _scores_differ(cache: Mapping[str, Tensor], weights: Attention, layer: int, tolerance: float) -> bool:
    """Are the patterns others than those of ``scale (x W_Q + b_Q) R (x W_K + b_K)``?

    Logarithms of a row of the pattern are its scores, up to a constant: they are compared with the largest one's.
    """
    x = cache[f"blocks.{layer}.attn.hook_in"].double()
    q, k = (_projected(x, W, b) for W, b in ((weights.W_Q, weights.b_Q), (weights.W_K, weights.b_K)))
    q, k = (torch.stack([rotated(t[:, :, p], [p], weights.rotary) for p in range(t.shape[2])], 2) for t in (q, k))
    ours = weights.scale * weights.rotary_scale**2 * q @ k.mT
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"].double()
    seen = (pattern > 1e-30) & torch.ones_like(pattern, dtype=torch.bool).tril()
    largest = pattern.argmax(-1, keepdim=True)
    ours, theirs = ((s - s.gather(-1, largest))[seen] for s in (ours, pattern.log()))
    return not bool((ours - theirs).abs().max() <= tolerance * ours.abs().max().clamp_min(1.0))


def _values_differ(cache: Mapping[str, Tensor], weights: Attention, layer: int, tolerance: float) -> bool:
    """Is something else written than values, carried along the patterns?"""
    v = _projected(cache[f"blocks.{layer}.attn.hook_in"].double(), weights.W_V, weights.b_V)
    z = cache[f"blocks.{layer}.attn.hook_pattern"].double() @ v
    ours = torch.einsum("bhpe,hed->bpd", z, weights.W_O.double())
    ours = ours if weights.b_O is None else ours + weights.b_O.double()
    theirs = cache[f"blocks.{layer}.attn.hook_out"].double()
    return not bool((ours - theirs).norm() <= tolerance * theirs.norm())


def _projected(
    x: Float[Tensor, "batch pos d_model"], W: Float[Tensor, "head d_model d_head"], b: Tensor | None
) -> Float[Tensor, "batch head pos d_head"]:
    projected = torch.einsum("bpd,hde->bhpe", x, W.double())
    return projected if b is None else projected + b.double()[:, None]
