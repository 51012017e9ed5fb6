r"""What parts write into a stream, as products with their weights, where a network is as plain as that.

In one stack whose sublayers add ``a W_O`` to the stream, the gradient of what a later part reads is one row of the
stream, r, for all that was written before, and the edge from i is ``(r W_O_i^T) a_i``. No backward pass has to go down
the stack for it, and one product serves all parts that are asked about together. Along a frozen pattern a head reads
the same direction at every source, times a number; then it has one r for all positions.

Nothing is taken for granted: `StreamProducts.of` compares with gradients on this very prompt, and is None where norms
stand behind sublayers, streams are scaled, weights are not where they are looked for, or numbers have 16 bits. Then
gradients are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.attribution.dependence import depends_on
from allheads.attribution.forward_cache import ForwardCache
from allheads.errors import AllHeadsError
from allheads.models.attention import read_attention
from allheads.twin.sites import Site

#: Roundings by which a product may differ from a gradient, relative to its size.
_ROUNDINGS = 256


@dataclass(frozen=True)
class StreamRead:
    """What a part reads of the stream: at each of the positions ``at``, one of the directions times a factor."""

    site: Site
    at: slice
    directions: Float[Tensor, "direction d_model"]
    which: Int[Tensor, " pos"]
    factors: Float[Tensor, " pos"]

    @classmethod
    def of(cls, site: Site, gradient: Float[Tensor, "pos d_model"], at: slice) -> StreamRead:
        """A gradient at the stream, by one direction if that is all there is in it."""
        rows = gradient[at]
        sizes = rows.square().sum(1)
        longest = rows[sizes.argmax()]
        factors = rows @ longest / sizes.max().clamp_min(torch.finfo(rows.dtype).tiny)
        off = (rows - factors[:, None] * longest).norm()
        count = torch.arange(len(rows), device=rows.device)
        if off <= _ROUNDINGS * torch.finfo(rows.dtype).eps * rows.norm():
            return cls(site, at, longest[None], torch.zeros_like(count), factors)
        return cls(site, at, rows, count, torch.ones_like(factors))


@dataclass(frozen=True)
class StreamProducts:
    """The weights with which sublayers write, in their order, and how many of these each of them reads."""

    cut: ForwardCache
    weights: dict[str, Float[Tensor, "entry d_model"]]
    before: dict[str, int]
    begins: dict[str, float]

    @classmethod
    def of(cls, cut: ForwardCache) -> StreamProducts | None:
        """The products of a network that is cut at every part; None where they are not its edges."""
        # In 16 bits roundings are as large as what could be wrong.
        if len(cut.stacks) > 1 or not cut.whole or torch.finfo(cut.activations[cut.end].dtype).bits < 32:
            return None
        weights = {site.name: _weights(cut, site) for site in cut.sites}
        before = {site.name: _before(cut, site) for site in cut.sites}
        known = {name: weight for name, weight in weights.items() if weight is not None}
        counts = {name: count for name, count in before.items() if count is not None}
        if len(known) < len(weights) or len(counts) < len(before):
            return None
        begins = _begins(cut)
        made = cls(cut, known, counts, begins) if begins is not None else None
        return made if made is not None and made._hold() else None

    def stream(self, site: Site) -> Tensor:
        """The stream before the layer of a sublayer."""
        return self.cut.activations[f"{site.stack}.{site.location.layer}.hook_resid_pre"]

    def of_reads(self, reads: Sequence[StreamRead]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """The edges into each of these parts, from sublayers and from what the stream begins with."""
        # Those that read most first: then every product is over the first few.
        order = sorted(range(len(reads)), key=lambda n: -self.before[reads[n].site.name])
        starts, rows = {}, 0
        for n in order:
            starts[n], rows = rows, rows + len(reads[n].directions)
        directions = torch.cat([reads[n].directions for n in order])
        products: list[Tensor] = []
        for number, site in enumerate(self.cut.sites):
            last = sum(len(reads[n].directions) for n in order if self.before[reads[n].site.name] > number)
            if not last:
                break
            products.append(directions[:last] @ self.weights[site.name].to(directions).T)
        for n, read in enumerate(reads):
            at = starts[n] + read.which
            parts = {
                site.name: self._written(site, products[number][at] * read.factors[:, None], read.at)
                for number, site in enumerate(self.cut.sites[: self.before[read.site.name]])
            }
            yield parts, self._begun(directions[at] * read.factors[:, None], read.at)

    def _written(self, site: Site, product: Float[Tensor, "pos entry"], at: slice) -> Tensor:
        """``[pos neuron]``, or ``[head pos]``."""
        leaf = self.cut.leaves[site.point].detach()[0, at]
        if site.scalar:
            return product * leaf
        return (product.view(leaf.shape) * leaf).sum(-1).T

    def _begun(self, gradient: Float[Tensor, "pos d_model"], at: slice) -> dict[str, Tensor]:
        return {
            name: factor * (gradient * self.cut.leaves[name].detach()[0, at]).sum(1)
            for name, factor in self.begins.items()
        }

    def _hold(self) -> bool:
        """Do products give the gradients of what every part reads? At the end of the stream those of all parts."""
        draw = torch.Generator().manual_seed(0)
        end = self.cut.activations[self.cut.end]
        seed = torch.randn(end.shape, generator=draw).to(end)
        leaves = [self.cut.leaves[site.point] for site in self.cut.sites]
        found = torch.autograd.grad(end, leaves, seed, retain_graph=True)
        whole = zip(self.cut.sites, found, strict=True)
        return all(self._same(site, gradient, seed) for site, gradient in whole) and all(
            self._near(site, draw) for site in self.cut.sites if self.before[site.name]
        )

    def _near(self, site: Site, draw: torch.Generator) -> bool:
        """Does a sublayer read what was written last before it as it reads the stream before its layer?"""
        read, last = self.cut.uncut[site.point], self.cut.sites[self.before[site.name] - 1]
        seed = torch.randn(read.shape, generator=draw).to(read)
        stream, leaf = self.stream(site), self.cut.leaves[last.point]
        at_stream, at_leaf = torch.autograd.grad(read, (stream, leaf), seed, retain_graph=True, allow_unused=True)
        return at_stream is not None and at_leaf is not None and self._same(last, at_leaf, at_stream)

    def _same(self, site: Site, gradient: Tensor, stream: Tensor) -> bool:
        expected = (stream[0] @ self.weights[site.name].to(stream).T).view(gradient.shape[1:])
        close = _ROUNDINGS * torch.finfo(gradient.dtype).eps
        return bool((gradient[0] - expected).norm() <= close * expected.norm())


def _weights(cut: ForwardCache, site: Site) -> Float[Tensor, "entry d_model"] | None:
    """What each entry of a sublayer writes into the stream, as its weights have it."""
    if site.kind == "A":
        layer = next(layer for layer in cut.twin.index.attention.values() if layer.location == site.location)
        try:
            return read_attention(cut.twin, layer).W_O.flatten(0, 1)
        except AllHeadsError:
            return None
    banks = (layer.bank for layer in cut.twin.layers if layer.location == site.location)
    bank = next(banks, None) if site.kind == "N" else None
    weight = None if bank is None or bank.edited else bank.shared("W_out")
    return None if weight is None else weight.detach()


def _before(cut: ForwardCache, site: Site) -> int | None:
    """How many sublayers are read; None unless these are the first ones."""
    reached = depends_on(cut.uncut[site.point], [cut.leaves[other.point] for other in cut.sites])
    count = sum(reached)
    return count if all(reached[:count]) else None


def _begins(cut: ForwardCache) -> dict[str, float] | None:
    """How many times the stream has what it begins with; None where that is no number."""
    end = cut.activations[cut.end]
    seed = torch.randn(end.shape, generator=torch.Generator().manual_seed(1)).to(end)
    leaves = cut.embeddings
    found = torch.autograd.grad(end, list(leaves.values()), seed, retain_graph=True, allow_unused=True)
    factors: dict[str, float] = {}
    for name, gradient in zip(leaves, found, strict=True):
        if gradient is None or gradient.shape != seed.shape:
            return None
        factor = float((gradient * seed).sum() / seed.square().sum())
        if (gradient - factor * seed).norm() > _ROUNDINGS * torch.finfo(seed.dtype).eps * gradient.norm():
            return None
        factors[name] = factor
    return factors
