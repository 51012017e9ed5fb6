r"""Why the heads of a graph attend: their scores, split over what was written into queries, into keys, and over pairs.

With norm scales frozen, the query of a head at its destination and its key at a source are sums over what earlier parts
write straight into them, ``q = sum_i q_i + ..`` and ``k = sum_j k_j + ..``. A score ``q . k`` is then

    sum_i q_i . k  +  constants  =  sum_j q . k_j  +  constants  =  sum_ij q_i . k_j  +  constants,

turned and scaled as the head does it. Where a score is capped, ``c(q . k)``, all three are times the slope c' there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from allheads.attribution.edges import begin_of, written_into
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable
from allheads.attribution.metric import NOTHING
from allheads.attribution.question import Question
from allheads.models.locations import Location
from allheads.twin.capture import capturing
from allheads.twin.labels import Label
from allheads.twin.sites import Site
from allheads.twin.softmax import PATTERN, SCORES, scores_shown

#: Rows of gradients that are taken at a time.
_ROWS = 16
#: By how many roundings the second derivative of a score may be off the score without a cap.
_ROUNDINGS = 256


@dataclass(frozen=True)
class TracedScore:
    """The score of a head from its destination to the source where its pattern is largest, and what it is made of.

    ``query`` and ``key`` are the largest shares, by node (``L3.A5@7``, ``embed@4``); ``pairs`` those of a part of the
    query with a part of the key. Direct: through no other head or neuron.
    """

    source: int
    score: float
    query: dict[str, float]
    key: dict[str, float]
    pairs: dict[tuple[str, str], float]


@dataclass(frozen=True, eq=False)
class _Writer:
    """A part or embedding at a position: its name, and where among the leaves of the network it has written."""

    name: str
    entries: dict[str, tuple[Any, ...]]

    def alone(self, point: str, leaf: Tensor) -> Tensor:
        """The leaf at a hook point with this in it and nothing else."""
        made = torch.zeros_like(leaf)
        made[self.entries[point]] = leaf.detach()[self.entries[point]]
        return made


def traced_scores(
    question: Question, heads: Iterable[tuple[Label, int]], k: int = 10
) -> tuple[dict[str, TracedScore], list[str]]:
    """What ``k`` parts, and pairs of these, make of each head's score, by node; and the layers that show no scores.

    Args:
        question: what the graph answers; its rule says whether norms are frozen.
        heads: ordinary heads, and the destinations from which they attend.
        k: how many shares of each side, and how many pairs, are listed.
    """
    by_layer: dict[Location, list[tuple[Label, int]]] = defaultdict(list)
    for label, position in heads:
        by_layer[question.twin.index.location(label)].append((label, position))
    shown, silent = _showing(question, by_layer)
    points = [f"{at.prefix}{name}" for at in shown for name in ("hook_q", "hook_k", PATTERN, SCORES)]
    found: dict[str, TracedScore] = {}
    if not shown:
        return found, silent
    with differentiable(question.about(NOTHING, unfrozen=tuple(points))):
        whole = ForwardCache(question.twin, autoencoders=question.autoencoders)
        with whole.recording():
            question.run()
        cut = whole.cut_anew(tuple(points))
        with cut.recording():
            question.run()
        for at in shown:
            layer = _Layer(cut, at, k)
            for start in range(0, len(by_layer[at]), _ROWS):
                found |= layer.traced(by_layer[at][start : start + _ROWS])
    return found, silent


def _showing(question: Question, locations: Iterable[Location]) -> tuple[list[Location], list[str]]:
    """The layers whose scores are seen on this prompt, and the names of the others."""
    names = {at: [f"{at.prefix}{name}" for name in ("hook_q", "hook_k", PATTERN, SCORES)] for at in locations}
    known = question.twin.hook_dict
    there = {at: some for at, some in names.items() if all(name in known for name in some[:3])}
    wanted = [name for some in there.values() for name in some]
    points = [name for name in wanted if not name.endswith(SCORES)]
    with torch.no_grad(), capturing(question.twin, points) as seen, scores_shown(question.twin, wanted, seen):
        question.run()
    shown = [at for at, some in there.items() if all(name in seen for name in some)]
    return shown, [at.stem for at in names if at not in shown]


class _Layer:
    """One layer of a network that is cut at every part, and what is written into its queries and keys."""

    def __init__(self, cut: ForwardCache, at: Location, k: int) -> None:
        self.cut, self.k = cut, k
        names = ("hook_q", "hook_k", PATTERN, SCORES)
        self.query, self.key, self.pattern, self.scores = (cut.activations[f"{at.prefix}{name}"] for name in names)

    def traced(self, heads: Sequence[tuple[Label, int]]) -> dict[str, TracedScore]:
        """The scores of these heads, each from a destination."""
        rows = [(label.index, at, int(self.pattern[0, label.index, at].argmax())) for label, at in heads]
        seeds = torch.zeros(len(rows), *self.scores.shape, dtype=self.scores.dtype, device=self.scores.device)
        for seed, (head, at, source) in zip(seeds, rows, strict=True):
            seed[0, head, at, source] = 1.0
        reads = (self.query, self.key)
        slopes = torch.autograd.grad(self.scores, reads, seeds, is_grads_batched=True, retain_graph=True)
        sides = [_largest(self.cut, *side, self.k) for side in zip(reads, slopes, strict=True)]
        vectors = [self._written(read, side) for read, side in zip(reads, sides, strict=True)]
        found = {}
        for n, ((label, at), (head, _, source)) in enumerate(zip(heads, rows, strict=True)):
            parts = [
                {writer.name: some[writer.name] for writer in side[n]}
                for side, some in zip(sides, vectors, strict=True)
            ]
            shares = [{writer.name: share for writer, share in side[n].items()} for side in sides]
            score = float(self.scores[0, head, at, source].detach())
            found[f"{label}@{at}"] = TracedScore(source, score, shares[0], shares[1], self._pairs(seeds[n], *parts))
        return found

    def _written(self, read: Tensor, rows: Iterable[Iterable[_Writer]]) -> dict[str, Tensor]:
        """What each part by itself writes into the queries or keys: a derivative along it, by a second gradient."""
        by_point: dict[str, dict[str, _Writer]] = defaultdict(dict)
        for writer in chain.from_iterable(rows):
            for point in writer.entries:
                by_point[point][writer.name] = writer
        leaves = [self.cut.leaves[point] for point in by_point]
        if not leaves:
            return {}
        upward = torch.zeros_like(read, requires_grad=True)
        downward = torch.autograd.grad(read, leaves, upward, create_graph=True)
        vectors: dict[str, Tensor] = {}
        for (point, writers), leaf, back in zip(by_point.items(), leaves, downward, strict=True):
            alone = torch.stack([writer.alone(point, leaf) for writer in writers.values()])
            (made,) = torch.autograd.grad(back, upward, alone, is_grads_batched=True, retain_graph=True)
            for name, vector in zip(writers, made, strict=True):
                vectors[name] = vectors[name] + vector if name in vectors else vector
        return vectors

    def _pairs(self, seed: Tensor, queries: dict[str, Tensor], keys: dict[str, Tensor]) -> dict[tuple[str, str], float]:
        """The largest ``q_i . k_j``, times the slope of a cap."""
        into_q, into_k = torch.autograd.grad(self.scores, (self.query, self.key), seed, create_graph=True)
        rows = torch.stack([*queries.values(), self.query.detach()])
        (turned,) = torch.autograd.grad(into_q, self.key, rows, is_grads_batched=True, retain_graph=True)
        columns = torch.stack([*keys.values(), self.key.detach()]).flatten(1)
        product = turned.flatten(1) @ columns.T
        of_q, of_k = rows.flatten(1) @ into_q.detach().flatten(), columns @ into_k.detach().flatten()
        gap = product[-1, -1] - of_q[-1]
        rounding = torch.finfo(rows.dtype).eps * into_q.norm().detach() * rows[-1].norm()
        if abs(gap) > _ROUNDINGS * rounding:  # the curve of a cap, which a second derivative sees
            product = product - gap / of_q[-1] ** 2 * of_q[:, None] * of_k
        names = [(query, key) for query in queries for key in keys]
        values = product[:-1, :-1].flatten().tolist()
        order = sorted(range(len(values)), key=lambda n: -abs(values[n]))[: self.k]
        return {names[n]: values[n] for n in order}


def _largest(cut: ForwardCache, read: Tensor, seeds: Tensor, k: int) -> list[dict[_Writer, float]]:
    """The k largest shares of each row."""
    rows: list[dict[_Writer, float]] = [{} for _ in seeds]
    parts, begins = written_into(cut, read, seeds)
    for site in cut.sites:
        if site.name in parts:
            for row, at, value in _top(parts[site.name], k):
                rows[row][_part(site, at)] = value
    for name, table in begins.items():
        points = [point for point in cut.embeddings if begin_of(point) == name]
        for row, (position,), value in _top(table, k):
            rows[row][_Writer(f"{name}@{position}", dict.fromkeys(points, (0, position)))] = value
    return [dict(sorted(row.items(), key=lambda item: -abs(item[1]))[:k]) for row in rows]


def _top(table: Tensor, k: int) -> Iterator[tuple[int, tuple[int, ...], float]]:
    """The k largest entries of every row: row, place, and value."""
    flat = table.flatten(1)
    order = flat.abs().topk(min(k, flat.shape[1])).indices
    places = torch.stack(torch.unravel_index(order, table.shape[1:]), -1).tolist()
    for row, values in enumerate(flat.gather(1, order).tolist()):
        for place, value in zip(places[row], values, strict=True):
            if value:
                yield row, tuple(place), value


def _part(site: Site, at: tuple[int, ...]) -> _Writer:
    """A head, ``(head, position)``, or a neuron, ``(position, neuron)``."""
    position, index = at if site.scalar else at[::-1]
    entry = (0, position, site.entries(index) if site.scalar else index)
    return _Writer(f"{site.label(index)}@{position}", {site.point: entry})
