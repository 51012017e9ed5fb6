"""What lies between two sublayers: through which norms they read and write, and who has written before whom.

The twin is run once on random tokens, and what its hook points saw is compared: a sublayer reads through the norm that
wrote its input, and what it adds to the stream is what the next reader finds there. Nothing is inferred from names, and
a network that is not a stream to which sublayers add is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import Attention, attention_layers, read_attention, read_embeddings
from allheads.models.compat import named_components
from allheads.models.norms import Norm, known_norm, norm_modules
from allheads.models.observe import evaluating
from allheads.twin.twin import TwinBridge


@dataclass(frozen=True)
class Sublayer:
    """The attention or the neurons of a layer.

    It reads the stream through ``before``, which holds the writes of the first ``depth`` sublayers, and adds to it
    through ``after``; None is no norm. Attention of layer l is sublayer 2l, its neurons are 2l + 1.
    """

    before: Norm | None
    after: Norm | None
    depth: int


@dataclass(frozen=True)
class Wiring:
    """Sublayers by layer, the norm before the unembedding, and the factor from ``W_E`` to the stream."""

    attention: list[Sublayer]
    neurons: list[Sublayer]
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
    seen = _Run.of(twin)
    inputs = [seen.read(f"blocks.{layer}.{part}") for layer in layers for part in ("attn", "mlp")]
    inputs.append(seen.read("unembed"))
    attention, neurons = [], []
    for layer in layers:
        (before, start), (reads, middle), (_, end) = inputs[2 * layer : 2 * layer + 3]
        (after, attended), (behind, computed) = (seen.write(f"blocks.{layer}.{part}") for part in ("attn", "mlp"))
        beside = torch.equal(start, middle)
        writes = [attended + computed] if beside else [attended, computed]
        steps = [end - start] if beside else [middle - start, end - middle]
        if not all(seen.added(step, write) for step, write in zip(steps, writes, strict=True)):
            raise AllHeadsError(
                "sublayers that add what they write to a stream", f"another kind in layer {layer}", "Not supported."
            )
        attention.append(Sublayer(before, after, 2 * layer))
        neurons.append(Sublayer(reads, behind, 2 * layer if beside else 2 * layer + 1))
    embedding = seen.embedding(inputs[0][1], read_embeddings(twin).W_E)
    read = [read_attention(twin, layer) for layer in layers]
    unread = [
        [layer for layer in layers if differ(read[layer], layer)] for differ in (seen.scores_differ, seen.values_differ)
    ]
    return Wiring(attention, neurons, inputs[-1][0], embedding, *unread)


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


@dataclass(frozen=True)
class _Run:
    """What hook points saw: two rows of random tokens."""

    ids: Tensor
    cache: Any
    norms: dict[str, Norm]

    @classmethod
    def of(cls, twin: TwinBridge) -> _Run:
        length = min(8, twin.cfg.n_ctx)
        ids = torch.randint(twin.cfg.d_vocab, (2, length), generator=torch.Generator().manual_seed(0))
        names = [name for name in twin.hook_dict if name.endswith((".hook_in", ".hook_out", ".attn.hook_pattern"))]
        with torch.no_grad(), evaluating(twin):
            cache = twin.run_with_cache(ids.to(twin.cfg.device), names_filter=names)[1]
        norms: dict[str, Norm] = {}
        scaling = {id(module) for _, module in norm_modules(twin.original_model)}
        for name, component in named_components(twin):
            module: Any = getattr(component, "original_component", None)
            # Norms inside attention act on heads.
            if id(module) in scaling and ".attn." not in name and f"{name}.hook_out" in cache:
                norm = known_norm(module, twin.cfg.d_model)
                norms |= {} if norm is None else {name: norm}
        return cls(ids, cache, norms)

    def read(self, name: str) -> tuple[Norm | None, Float[Tensor, "batch pos d_model"]]:
        """The norm through which a part reads, and the stream before it."""
        if f"{name}.hook_in" not in self.cache:
            raise AllHeadsError("sublayers with hook points", f"none at {name}", "Not supported.")
        x = self.cache[f"{name}.hook_in"]
        for path, norm in self.norms.items():
            if _same(self.cache[f"{path}.hook_out"], x):
                return norm, self.cache[f"{path}.hook_in"].double()
        return None, x.double()

    def write(self, name: str) -> tuple[Norm | None, Float[Tensor, "batch pos d_model"]]:
        """The norm through which a part writes, and what is written behind it."""
        x = self.cache[f"{name}.hook_out"]
        for path, norm in self.norms.items():
            if _same(self.cache[f"{path}.hook_in"], x):
                return norm, self.cache[f"{path}.hook_out"].double()
        return None, x.double()

    def added(self, step: Tensor, write: Tensor) -> bool:
        """Is one a positive multiple of the other, as far as the dtype shows?"""
        factor = (step * write).sum() / write.square().sum().clamp_min(1e-300)
        return bool(factor > 0) and bool((step - factor * write).norm() <= self._tolerance * step.norm())

    def embedding(self, start: Tensor, W_E: Float[Tensor, "d_vocab d_model"]) -> float:
        """The factor of ``W_E`` in the stream; what positions add is the same in both rows."""
        rows, step = W_E[self.ids.to(W_E.device)].double(), start[0] - start[1]
        if not self.added(step, rows[0] - rows[1]):
            raise AllHeadsError("a stream that begins with W_E", "another beginning", "Not supported.")
        return float((step * (rows[0] - rows[1])).sum() / (rows[0] - rows[1]).square().sum())

    def scores_differ(self, read: Attention, layer: int) -> bool:
        """Are the patterns others than those of ``scale (x W_Q + b_Q) R (x W_K + b_K)``?

        Logarithms of a row of the pattern are its scores, up to a constant: they are compared with the largest one's.
        """
        x = self.cache[f"blocks.{layer}.attn.hook_in"].double()
        q, k = (
            torch.einsum("bpd,hde->bphe", x, W.double()) + (0.0 if b is None else b.double())
            for W, b in ((read.W_Q, read.b_Q), (read.W_K, read.b_K))
        )
        q, k = (torch.stack([rotated(t[:, p], [p], read.rotary) for p in range(t.shape[1])], 2) for t in (q, k))
        ours = read.scale * read.rotary_scale**2 * q @ k.mT
        pattern = self.cache[f"blocks.{layer}.attn.hook_pattern"].double()
        seen = (pattern > 1e-30) & torch.ones_like(pattern, dtype=torch.bool).tril()
        largest = pattern.argmax(-1, keepdim=True)
        ours, theirs = ((s - s.gather(-1, largest))[seen] for s in (ours, pattern.log()))
        return not bool((ours - theirs).abs().max() <= 4 * self._tolerance * ours.abs().max().clamp_min(1.0))

    def values_differ(self, read: Attention, layer: int) -> bool:
        """Is something else written than values, carried along the patterns?"""
        x = self.cache[f"blocks.{layer}.attn.hook_in"].double()
        v = torch.einsum("bpd,hde->bhpe", x, read.W_V.double())
        v = v if read.b_V is None else v + read.b_V.double()[:, None]
        z = self.cache[f"blocks.{layer}.attn.hook_pattern"].double() @ v
        ours = torch.einsum("bhpe,hed->bpd", z, read.W_O.double())
        ours = ours if read.b_O is None else ours + read.b_O.double()
        theirs = self.cache[f"blocks.{layer}.attn.hook_out"].double()
        return not bool((ours - theirs).norm() <= 4 * self._tolerance * theirs.norm())

    @property
    def _tolerance(self) -> float:
        return max(1e-4, 4 * torch.finfo(self.cache["unembed.hook_in"].dtype).eps)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
