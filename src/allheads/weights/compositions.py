"""composition: how much of what one part writes is what another reads, over every pair, block by block.

1. Reads become thin factors of norm 1, for as many layers at a time as a bounded memory holds.
2. So does each layer of writers; its product with all later reads, in blocks of bounded size, gives the scores.
3. The score of matrices turned at random is subtracted; the k largest stay, with a mean for each pair of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.norms import Norm
from allheads.progress import bar
from allheads.result import Result
from allheads.twin.twin import TwinBridge, require_twin
from allheads.twin.wiring import ResidualBranch, Side, Wiring, read_wiring
from allheads.weights.baseline import baseline
from allheads.weights.factors import (
    Factors,
    Reader,
    Writer,
    checked_offsets,
    grouped_reads,
    require_scores,
    require_values,
    seen_dimensions,
    writes,
)
from allheads.weights.top_k import TopK, chunks

if TYPE_CHECKING:
    import pandas

#: Writer -> reader.
KINDS = tuple(f"{writer}->{reader}" for writer in get_args(Writer) for reader in get_args(Reader))


@dataclass(frozen=True)
class Pair:
    """A write and a read: their composition score, and what it is by chance.

    ``sign`` says whether a neuron raises (1) or lowers (-1) what another reads; it is 0 where a head is involved.
    """

    writer: str
    reader: str
    score: float
    baseline: float
    sign: int

    @property
    def excess(self) -> float:
        """The score beyond chance."""
        return self.score - self.baseline


@dataclass(frozen=True, repr=False)
class Composition(Result):
    """The pairs of a kind with the largest excess, and what all ``count`` of them look like.

    >>> import allheads as ah
    >>> found = ah.weights.composition(twin, "head->V", k=3)
    >>> len(found), found.count
    (3, 216)
    """

    kind: str
    offsets: list[int]
    pairs: list[Pair]
    count: int
    #: The mean excess of all pairs of two layers, stack by stack; nan where a write does not reach a read.
    by_layer: Float[Tensor, "writer_layer reader_layer"]
    #: Over all pairs: the mean squared score times the dimensions of the stream, which is 1 by chance.
    chance_ratio: float
    #: Layers whose heads multiply what they carry by gates, coordinate by coordinate: scores are those of equal gates.
    gated: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def facts(self) -> dict[str, Any]:
        """The kind, how many pairs there are, and how they compare with chance."""
        return {
            "kind": self.kind,
            "offsets": self.offsets,
            "count": self.count,
            "chance_ratio": self.chance_ratio,
            "gated": list(self.gated),
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """Columns: writer, reader, score, baseline, excess, sign."""
        import pandas

        rows = [(p.writer, p.reader, p.score, p.baseline, p.excess, p.sign) for p in self.pairs]
        return pandas.DataFrame(rows, columns=["writer", "reader", "score", "baseline", "excess", "sign"])


@torch.no_grad()
def composition(twin: TwinBridge, kind: str, *, k: int = 100, offsets: Sequence[int] = (0,)) -> Composition:
    r"""The strongest compositions of a kind, out of every pair of a write and a later read.

    The score of Elhage et al. (2021), ``||W_write W_read||_F / (||W_write||_F ||W_read||_F)``, from 0 to 1, with norm
    gains folded into what reads, less its mean over random rotations of one against the other
    (`allheads.weights.baseline`). A head's write is ``W_V W_O``; its read by Q is ``W_Q R W_K^T``, by K the same
    transposed, by V ``W_V W_O``. Biases are left out. Norms of queries, keys and values, and of the latents that these
    are made of, have their gains folded in, and their scales left out, which are positive and differ between positions;
    so is what positions alone add to scores. Where heads have gates (``gated``), all are taken as equal, which they are
    for no prompt: a gate of each coordinate changes the direction of what is carried. Norms in the stream
    itself, behind its sums, count for whoever reads behind them. Experts are read without their router's weights, and
    cross-attention reads keys and values where its stack of the other side ends.

    Args:
        twin: from `ah.convert`.
        kind: ``"neuron->Q"`` and so on: writes of ``neuron`` or ``head``, into heads' ``Q``, ``K`` or ``V``, or into
            neurons' ``query`` or, where they are gated, ``value``.
        k: how many pairs to keep.
        offsets: how many positions a key is before its query. Squared norms are averaged over them, so that the score
            is a root mean square; without rotary they do not matter.

    Returns:
        A `Composition`: the pairs, largest excess first.

    Raises:
        AllHeadsError: an unknown kind; weights that cannot be read this way, by name: heads that carry something else
            than values, scores of another form (for Q and K), norms of an unknown kind, edited heads.

    >>> import allheads as ah
    >>> found = ah.weights.composition(twin, "neuron->Q", k=3)
    >>> [pair.excess > 0 for pair in found]
    [True, True, True]
    """
    writer, reader = _sides(twin, kind)
    if not isinstance(k, int) or k < 1:
        raise AllHeadsError("k of 1 or more", repr(k), "It is how many pairs to keep.")
    offsets = checked_offsets(offsets)
    wiring = read_wiring(twin)
    writers, readers = (wiring.of_kind(neurons) for neurons in (writer == "neuron", reader in ("query", "value")))
    if reader == "value":
        readers = _gated(readers)
    for side, branches in ((writer, writers), (reader, readers)):
        if not branches:
            raise AllHeadsError(f"sublayers with a {side}", "none that run beside a stream", "Choose another kind.")
    if reader in ("Q", "K"):
        require_scores(readers)
    if reader == "V":
        require_values(readers)
    if writer == "head":
        require_values(writers)
    reached = _reached(wiring, writers, readers, "Q" if reader in ("Q", "query", "value") else "V")
    places, d = _places(wiring), seen_dimensions(wiring)
    top: TopK[Pair] = TopK(k)
    sums = torch.zeros(3, len(places), len(places), dtype=torch.float64)
    for group in grouped_reads(wiring, reader, readers, offsets):
        behind: dict[str, tuple[Sequence[Norm], Factors]] = {}
        for branch in bar(kind, writers):
            later = [read for read in group if (branch.site.name, read.branch.site.name) in reached]
            if later:
                written = writes(wiring, branch)
                for read in later:
                    name = read.branch.site.name
                    norms = reached[branch.site.name, name]
                    if name not in behind or list(map(id, behind[name][0])) != list(map(id, norms)):
                        behind[name] = norms, read.through(norms)
                    cell = sums[:, _place(places, branch), _place(places, read.branch)]
                    _compare(written, behind[name][1], d, top, cell)
    count, excess, squares = sums
    pairs = int(count.sum())
    return Composition(
        kind,
        offsets,
        pairs=[pair for _, pair in top.entries],
        count=pairs,
        by_layer=excess / count,
        chance_ratio=float(squares.sum()) * d / max(1, pairs),
        gated=_gates([*(writers if writer == "head" else []), *(readers if reader == "V" else [])]),
    )


def _sides(twin: TwinBridge, kind: str) -> tuple[Writer, Reader]:
    require_twin(twin)
    if kind not in KINDS:
        raise AllHeadsError(f"a kind out of {', '.join(KINDS)}", repr(kind), "Writer, arrow, reader.")
    writer, reader = kind.split("->")
    return cast(Writer, writer), cast(Reader, reader)


def _gated(branches: Sequence[ResidualBranch]) -> list[ResidualBranch]:
    """Those whose neurons are gated; all of them where none is, to be refused by name."""
    gated = [branch for branch in branches if branch.bank is not None and branch.bank.gated]
    return gated or list(branches)


def _gates(branches: Sequence[ResidualBranch]) -> tuple[str, ...]:
    """Which of these sublayers of heads have gates."""
    return tuple(dict.fromkeys(b.name for b in branches if b.attention is not None and b.attention.gated))


def _reached(
    wiring: Wiring, writers: Sequence[ResidualBranch], readers: Sequence[ResidualBranch], side: Side
) -> dict[tuple[str, str], tuple[Norm, ...]]:
    """The norms between every writer and every reader that its writes reach. Raises `AllHeadsError` if none."""
    ways = {
        (writer.site.name, reader.site.name): wiring.norms(writer, reader, side)
        for writer in writers
        for reader in readers
    }
    reached = {pair: norms for pair, norms in ways.items() if norms is not None}
    if not reached:
        raise AllHeadsError(
            "parts that write into a stream which others read later",
            f"{writers[0].name}, whose writes reach none of {readers[0].name} to {readers[-1].name} as they are",
            "Circuits can be read.",
        )
    return reached


def _places(wiring: Wiring) -> dict[tuple[str, int], int]:
    """The number of every layer of every stack."""
    layers = dict.fromkeys((b.site.stack, b.site.location.layer) for b in wiring.branches.values())
    return {layer: number for number, layer in enumerate(layers)}


def _place(places: dict[tuple[str, int], int], branch: ResidualBranch) -> int:
    return places[branch.site.stack, branch.site.location.layer]


def _compare(writes: Factors, reads: Factors, d: int, top: TopK[Pair], sums: Float[Tensor, " 3"]) -> None:
    """Compare every write of a sublayer with every read of a later one.

    ``sums`` over pairs: their count, their excess, their squared scores.
    """
    (count, rank, _), (readers, width, _) = writes.M.shape, reads.M.shape
    vectors, across = rank == width == 1, reads.M.flatten(0, 1).T
    # Writes of rank one are all alike here.
    chance = baseline((writes.peaks[:1] if rank == 1 else writes.peaks)[:, None], reads.peaks, d)
    chance = chance.to(across).expand(count, readers)
    for some in chunks(count, rank * readers * width):
        products = (writes.M[some].flatten(0, 1) @ across).view(-1, rank, readers, width)
        scores = products[:, 0, :, 0].abs() if vectors else products.square().sum((1, 3)).sqrt()
        excess = scores - chance[some]

        def pair(value: float, row: int, column: int, products: Tensor = products, start: int = some.start) -> Pair:
            by_chance, sign = float(chance[start + row, column]), int(products[row, 0, column, 0].sign())
            names = writes.label(start + row), reads.label(column)
            return Pair(*names, value + by_chance, by_chance, sign if vectors else 0)

        top.offer(excess, pair)
        totals = (torch.ones_like(excess), excess, scores.square())
        sums += torch.stack([values.sum(dtype=torch.float64).cpu() for values in totals])
