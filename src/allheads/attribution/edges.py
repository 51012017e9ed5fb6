"""Direct effects between parts: the frozen network, with what heads and neurons write cut from what they read.

The contribution of part j is ``c_j = G_j . a_j``. What it reads is linear in the parts before it,
``a_j = sum_i J_ji a_i + const``, with J along the stream only. The edge from i to j is ``G_j . J_ji a_i``, and with the
constant's share the edges into j sum to c_j. Where patterns are not frozen, queries and keys have edges of their own:
to first order the share of ``sum_s (dy/dscore_s) score_s``, to which queries and keys each sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.constants import constants, unnamed
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable, require_linear
from allheads.attribution.question import Question
from allheads.attribution.stream_products import StreamProducts, StreamRead
from allheads.errors import AllHeadsError
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.sites import SCALARS, Site

T = TypeVar("T")
#: Through values, or where patterns are not frozen also through queries and keys.
Side = Literal["V", "Q", "K"]
#: The number of a head or neuron in its layer, and a position.
Entry = tuple[int, int]

#: Entries of gradients that are kept at a time, and parts whose products are.
_ENTRIES, _READS = 2**24, 64


@dataclass(frozen=True)
class IncomingEdges:
    """Edges into one part through one side: ``V``, or ``Q`` and ``K`` where patterns are not frozen.

    From every sublayer, ``[head from]`` or ``[from d_mlp]``, and from what streams begin with, ``[from]``. ``at`` are
    the positions they are from: in one stack, a neuron reads at its own only.
    """

    side: Side
    total: float
    parts: dict[str, Tensor]
    embeddings: dict[str, Float[Tensor, " from"]]
    constants: float
    at: slice = field(default_factory=lambda: slice(None))

    def size(self) -> float:
        """The sum of their absolute weights."""
        tensors = (*self.parts.values(), *self.embeddings.values())
        return sum(float(tensor.abs().sum()) for tensor in tensors) + abs(self.constants)


@dataclass(frozen=True)
class _Read:
    """One side of a part: what it reads in sum, of that the constants, where, and at which positions."""

    side: Side
    total: float
    constant: float
    #: The sublayer, and what is read of the stream before its layer; where there are no products, what each part and
    #: each beginning gives.
    passed: Any
    at: slice


@dataclass
class Edges:
    """A prompt's frozen network, ready to say what goes into any part: `edges` makes one."""

    question: Question
    cut: ForwardCache
    zero: ForwardCache
    gradients: dict[str, Tensor]
    value: Tensor
    #: What streams begin with, at each position, and all constants contribute over all paths.
    embeddings: dict[str, Float[Tensor, " pos"]]
    constants: float
    #: None where edges are taken from gradients, as everywhere in `written_into`.
    products: StreamProducts | None
    _apart: dict[str, bool] = field(default_factory=dict)

    def into_target(self) -> IncomingEdges:
        """What is written straight into the target; its constants are what remains of it."""
        parts, begins = written_into(self.cut, self.value, torch.ones_like(self.value)[None])
        parts, begins = ({name: part[0] for name, part in found.items()} for found in (parts, begins))
        total = float(self.value.detach())
        rest = total - sum(float(part.sum()) for part in (*parts.values(), *begins.values()))
        return IncomingEdges("V", total, parts, begins, rest)

    def into(self, groups: Mapping[Site, Sequence[Entry]]) -> Iterator[tuple[Site, Entry, list[IncomingEdges]]]:
        """Edges into heads or neurons ``(index, position)`` of some sublayers, side by side."""
        reads = ((site, *read) for site, entries in groups.items() for read in self._reads(site, entries))
        # Products are of many parts at a time; what gradients give at parts is large, and not kept.
        for chunk in batched(reads, 1 if self.products is None else _READS):
            edges = self._edges([side for _, _, sides in chunk for side in sides])
            for site, entry, sides in chunk:
                yield site, entry, [next(edges) for _ in sides]

    def _reads(self, site: Site, entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[_Read]]]:
        return self._of_heads(site, entries) if site.kind in ("A", "X") else self._of_others(site, entries)

    def _of_heads(self, site: Site, entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[_Read]]]:
        read, gradient = self.cut.uncut[site.point], self.gradients[site.point]
        sides: tuple[Side, ...] = ("V",) if self.question.rule.patterns else ("V", "Q", "K")
        points = [f"{site.location.prefix}hook_{side.lower()}" for side in sides]
        tensors, zeros = ([cache.activations[point] for point in points] for cache in (self.cut, self.zero))
        for chunk in _chunks(entries, self._rows):
            seeds = torch.zeros(len(chunk), *read.shape, dtype=read.dtype, device=read.device)
            for row, (head, position) in enumerate(chunk):
                seeds[row, 0, position, head] = gradient[0, position, head]
            backs = torch.autograd.grad(read, tensors, seeds, is_grads_batched=True, retain_graph=True)
            found = []
            for side, tensor, back, zero in zip(sides, tensors, backs, zeros, strict=True):
                totals, constants = ((back * v.detach()).flatten(1).sum(1).tolist() for v in (tensor, zero))
                passed = self._passed(site, tensor, back)
                found.append([_Read(side, *each, slice(None)) for each in zip(totals, constants, passed, strict=True)])
            yield from ((entry, [side[row] for side in found]) for row, entry in enumerate(chunk))

    def _of_others(self, site: Site, entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[_Read]]]:
        """Neurons, latents and errors at several positions share a row where each reads at its own."""
        read, gradient, zero = self.cut.uncut[site.point], self.gradients[site.point], self.zero.uncut[site.point]
        alone = self._alone(site)
        rows = _rows_of_positions(entries, self._rows) if alone else _chunks([[entry] for entry in entries], self._rows)
        for chunk in rows:
            seeds = torch.zeros(len(chunk), *read.shape, dtype=read.dtype, device=read.device)
            for row, members in enumerate(chunk):
                for neuron, position in members:
                    heads = site.entries(neuron)
                    seeds[row, 0, position, heads] = gradient[0, position, heads]
            for members, passed in zip(chunk, self._passed(site, read, seeds), strict=True):
                for neuron, position in members:
                    at, heads = slice(position, position + 1) if alone else slice(None), site.entries(neuron)
                    slopes = gradient[0, position, heads]
                    total, constant = (float((slopes * v[0, position, heads].detach()).sum()) for v in (read, zero))
                    yield (neuron, position), [_Read("V", total, constant, passed, at)]

    def _alone(self, site: Site) -> bool:
        """Does each part read at its own position only? Not past what mixes positions and is not frozen."""
        if self.products is not None or len(self.cut.stacks) > 1:
            return self.products is not None
        if site.name not in self._apart:
            read = self.cut.uncut[site.point]
            seed = torch.zeros_like(read)
            seed[0, -1] = torch.randn(read[0, -1].shape, generator=torch.Generator().manual_seed(0)).to(read)
            begins = list(self.cut.embeddings.values())
            found = torch.autograd.grad(read, begins, seed, retain_graph=True, allow_unused=True)
            self._apart[site.name] = not any(back is not None and bool(back[0, :-1].any()) for back in found)
        return self._apart[site.name]

    def _passed(self, site: Site, read: Tensor, seeds: Tensor) -> list[Any]:
        """What comes of each row of seeds at the stream before the layer, or where there are no products, at parts."""
        if self.products is None:
            parts, begins = written_into(self.cut, read, seeds)
            return [
                ({name: part[row] for name, part in parts.items()}, {name: part[row] for name, part in begins.items()})
                for row in range(len(seeds))
            ]
        stream = self.products.stream(site)
        (found,) = torch.autograd.grad(read, (stream,), seeds, is_grads_batched=True, retain_graph=True)
        return [(site, row) for row in found[:, 0]]

    def _edges(self, reads: Sequence[_Read]) -> Iterator[IncomingEdges]:
        """Edges out of what was read; products of all that are asked about in one go."""
        if self.products is None:
            for read in reads:
                parts, begins = read.passed
                here = {n: part[read.at if n.endswith(SCALARS) else (..., read.at)] for n, part in parts.items()}
                there = {name: part[read.at] for name, part in begins.items()}
                yield IncomingEdges(read.side, read.total, here, there, read.constant, read.at)
            return
        streams = [StreamRead.of(site, row, read.at) for read in reads for site, row in [read.passed]]
        for read, (parts, begins) in zip(reads, self.products.of_reads(streams), strict=True):
            yield IncomingEdges(read.side, read.total, parts, _by_begin(begins), read.constant, read.at)

    @property
    def _rows(self) -> int:
        return max(1, _ENTRIES // sum(self.cut.leaves[site.point].numel() for site in self.cut.neurons))


def written_into(cut: ForwardCache, read: Tensor, seeds: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``seeds . J_i a_i`` for each row of seeds and every head, neuron and embedding i at each position.

    By sublayer, ``[row head from]`` or ``[row from d_mlp]``, and by what streams begin with, ``[row from]``.
    """
    leaves = cut.leaves
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    if read.requires_grad:
        grads = torch.autograd.grad(
            read, list(leaves.values()), seeds, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
    found = {
        name: grad[:, 0] * leaf.detach()[0]
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        if grad is not None
    }
    written = {site: found[site.point] for site in cut.sites if site.point in found}
    parts = {
        site.name: site.summed(part) if site.scalar else part.sum(-1).transpose(1, 2) for site, part in written.items()
    }
    return parts, _by_begin({name: found[name].sum(-1) for name in cut.embeddings if name in found})


def begin_of(point: str) -> str:
    """What a stream begins with at a hook point, tokens and positions together: ``embed``, ``decoder_embed``."""
    stack = point.removesuffix(".0.hook_resid_pre")
    return "decoder_embed" if point.startswith("decoder_") else "embed" if point in EMBEDDINGS else stack


def _by_begin(embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in embeddings.items():
        begin = begin_of(name)
        found[begin] = found[begin] + value if begin in found else value
    return found


@contextmanager
def edges(question: Question) -> Iterator[Edges]:
    """Run the network as it is, cut, and cut with nothing in it: what it then reads are the constants.

    Raises `AllHeadsError` for a rule that does not freeze norms and gates.
    """
    twin, metric, rule = question.twin, question.metric, question.rule
    if not (rule.norms and rule.gates):
        raise AllHeadsError("a rule that freezes norms and gates", repr(rule.name), "Use value, half, live or relp.")
    with differentiable(question) as frozen:
        whole = ForwardCache(twin, metric.hook_points, autoencoders=question.autoencoders)
        with whole.recording():
            value = metric.of(question.run(), whole.activations)
        if not torch.isfinite(value):
            got = f"{metric.name} of {float(value.detach())}"
            raise AllHeadsError("a target with a finite value", got, "Take another.")
        begins = tuple(whole.embeddings)
        named, written = constants(frozen), [site.point for site in whole.sites]
        tensors = {name: whole.activations[name] for name in (*begins, *whole.starts, *written)}
        tensors |= {name: tensor for name, (_, tensor) in named.items()}
        found = torch.autograd.grad(value, list(tensors.values()), retain_graph=True, allow_unused=True)
        gradients = {
            name: torch.zeros_like(tensor) if gradient is None else gradient
            for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
        }
        effects = {name: (gradients[name] * tensor).detach() for name, tensor in tensors.items()}
        read = "v" if rule.patterns else "vqk"
        points = (*metric.hook_points, *(f"{s.location.prefix}hook_{side}" for s in whole.heads for side in read))
        zero = whole.cut_anew(points, empty=True)
        with torch.no_grad(), zero.recording():
            question.run()
        cut = whole.cut_anew(points)
        with cut.recording():
            value = metric.of(question.run(), cut.activations)
        embeddings = _by_begin({name: effects[name][0].sum(-1) for name in begins})
        beside = unnamed(whole, gradients, named) if rule.complete else {}
        if beside:
            require_linear(question)
        fixed = sum(float(effects[name].sum()) for name in named) + sum(beside.values())
        yield Edges(question, cut, zero, gradients, value, embeddings, fixed, StreamProducts.of(cut))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of a size; itertools has it from Python 3.12 on."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _chunks(entries: Sequence[Any], rows: int) -> Iterator[Sequence[Any]]:
    return (entries[start : start + rows] for start in range(0, len(entries), rows))


def _rows_of_positions(entries: Sequence[Entry], rows: int) -> Iterator[list[list[Entry]]]:
    """Rows of neurons at different positions, some rows at a time."""
    found: list[list[Entry]] = []
    filled: dict[int, int] = {}
    for neuron, position in entries:
        row = filled[position] = filled.get(position, -1) + 1
        if row == len(found):
            found.append([])
        found[row].append((neuron, position))
    return (found[start : start + rows] for start in range(0, len(found), rows))
