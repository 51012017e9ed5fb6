"""composition: how much of what one part writes is what another reads, over every pair, block by block.

1. For each layer of readers and each layer of writers before it, both sides become thin factors of norm 1.
2. Their product, for as many writers at a time as a block of bounded size holds, gives the scores.
3. The score of matrices turned at random is subtracted; the k largest stay, with a mean for each pair of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from allheads.errors import AllHeadsError
from allheads.models.bridge import TwinBridge
from allheads.models.wiring import read_wiring
from allheads.weights.baseline import baseline, peakedness
from allheads.weights.best import Best, chunks
from allheads.weights.factors import (
    Factors,
    Reader,
    Streams,
    Writer,
    checked_offsets,
    require_scores,
    require_values,
)

if TYPE_CHECKING:
    import pandas

#: Writer -> reader.
KINDS = tuple(f"{writer}->{reader}" for writer in get_args(Writer) for reader in get_args(Reader))
#: Seconds after which a bar shows that there is work.
PATIENCE = 3.0


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


@dataclass(frozen=True)
class Composition:
    """The pairs of a kind with the largest excess, and what all ``count`` of them look like."""

    kind: str
    offsets: list[int]
    pairs: list[Pair]
    count: int
    #: The mean excess of all pairs of two layers; nan where a write does not reach a read.
    by_layer: Float[Tensor, "writer_layer reader_layer"]
    #: Over all pairs: the mean squared score times the dimensions of the stream, which is 1 by chance.
    chance_ratio: float

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

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
    transposed, by V ``W_V W_O``. Biases are left out.

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
        AllHeadsError: an unknown kind; weights that cannot be read this way: several stacks, mixtures of experts, norms
            of queries (for Q and K), edited heads.

    >>> import allheads as ah
    >>> for pair in ah.composition(twin, "neuron->Q", k=3):  # doctest: +SKIP
    ...     print(pair.writer, pair.reader, pair.excess)
    """
    writer, reader = _sides(twin, kind)
    if not isinstance(k, int) or k < 1:
        raise AllHeadsError("k of 1 or more", repr(k), "It is how many pairs to keep.")
    offsets = checked_offsets(offsets)
    streams = Streams(twin, read_wiring(twin), offsets)
    layers = range(len(twin.banks))
    if reader in ("Q", "K"):
        require_scores(streams.wiring, layers)
    if reader == "V" or writer == "head":
        require_values(streams.wiring, layers)
    best: Best[Pair] = Best(k)
    by_layer = torch.full((len(layers), len(layers)), torch.nan, dtype=torch.float64)
    count, squares = 0, 0.0
    for later in tqdm(layers, desc=kind, delay=PATIENCE, disable=None, leave=False):
        reads = streams.reads(reader, later)
        for earlier in streams.reaching(writer, reads):
            writes = streams.writes(writer, earlier)
            total, squared = _compare(writes, reads, streams.d, best)
            pairs = len(writes.M) * len(reads.M)
            by_layer[earlier, later] = total / pairs
            count, squares = count + pairs, squares + squared
    found = [pair for _, pair in best.entries]
    return Composition(kind, offsets, found, count, by_layer, squares * streams.d / max(1, count))


def _sides(twin: TwinBridge, kind: str) -> tuple[Writer, Reader]:
    if not isinstance(twin, TwinBridge):
        raise AllHeadsError("an attention-only twin", type(twin).__name__, "Make one with ah.convert(source).")
    if kind not in KINDS:
        raise AllHeadsError(f"a kind out of {', '.join(KINDS)}", repr(kind), "Writer, arrow, reader.")
    writer, reader = kind.split("->")
    return cast(Writer, writer), cast(Reader, reader)


def _compare(writes: Factors, reads: Factors, d: int, best: Best[Pair]) -> tuple[float, float]:
    """Offer the excess of every pair of two layers; their sum, and that of the squared scores."""
    (count, rank, _), (readers, width, _) = writes.M.shape, reads.M.shape
    # One number for all where all have rank one.
    a, b = (peakedness(side.M[:1] if side.M.shape[1] == 1 else side.M) for side in (writes, reads))
    chance = baseline(a[:, None], b, d).to(reads.M).expand(count, readers)
    total = squared = 0.0
    for some in chunks(count, rank * readers * width):
        products = (writes.M[some].flatten(0, 1) @ reads.M.flatten(0, 1).T).view(-1, rank, readers, width)
        vectors = rank == width == 1
        scores = products[:, 0, :, 0].abs() if vectors else products.square().sum((1, 3)).sqrt()
        excess = scores - chance[some]

        def pair(value: float, row: int, column: int, products: Tensor = products, start: int = some.start) -> Pair:
            by_chance, sign = float(chance[start + row, column]), int(products[row, 0, column, 0].sign())
            names = writes.label(start + row), reads.label(column)
            return Pair(*names, value + by_chance, by_chance, sign if rank == width == 1 else 0)

        total, squared = total + float(excess.sum(dtype=torch.float64)), squared + float(scores.square().sum())
        best.offer(excess, pair)
    return total, squared
