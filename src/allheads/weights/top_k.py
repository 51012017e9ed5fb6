"""The k largest entries of a matrix that is too large to build: it is computed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")
#: Numbers in a block: 16 MB in float32.
BLOCK = 2**22


@dataclass
class TopK(Generic[T]):
    """The k largest of all that was offered with what they belong to, largest first.

    >>> top: TopK[str] = TopK(2)
    >>> top.offer(torch.tensor([[1.0, 5.0], [2.0, 3.0]]), lambda value, row, column: f"a{row}{column}")
    >>> top.offer(torch.tensor([[4.0]]), lambda value, row, column: f"b{row}{column}")
    >>> top.entries
    [(5.0, 'a01'), (4.0, 'b00')]
    """

    k: int
    entries: list[tuple[float, T]] = field(default_factory=list)

    @property
    def threshold(self) -> float:
        """What an entry has to exceed."""
        return self.entries[-1][0] if len(self.entries) == self.k else -float("inf")

    def offer(self, block: Float[Tensor, "row column"], named: Callable[[float, int, int], T]) -> None:
        """Look at a block; ``named`` says what an entry belongs to, from its value, row and column."""
        # Comparing is much cheaper than sorting, and few entries pass.
        rows, columns = (block > self.threshold).nonzero(as_tuple=True)
        values, order = block[rows, columns].topk(min(self.k, len(rows)))
        found = zip(values.tolist(), rows[order].tolist(), columns[order].tolist(), strict=True)
        new = [(value, named(value, row, column)) for value, row, column in found]
        self.entries = sorted([*self.entries, *new], key=lambda entry: -entry[0])[: self.k]


def chunks(count: int, width: int) -> Iterator[slice]:
    """Rows of a matrix with ``width`` columns, as many at a time as a block holds."""
    step = max(1, BLOCK // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def top_pairs(A: Float[Tensor, "a inner"], B: Float[Tensor, "b inner"], k: int) -> list[tuple[float, int, int]]:
    """The k largest entries of ``A B^T``, largest first, as ``(value, a, b)``.

    Rows are taken by their norms: ``A_i . B_j <= ||A_i|| ||B_j||`` leaves most of the matrix out.

    >>> top_pairs(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]]), 2)
    [(3.0, 1, 0), (2.0, 0, 1)]
    """
    (norms, rows), (reach, columns) = (torch.sort(M.norm(dim=1), descending=True) for M in (A, B))
    B = B[columns]
    top: TopK[tuple[float, int, int]] = TopK(k)
    for some in chunks(len(A), len(B)):
        mine = rows[some]

        def named(value: float, row: int, column: int, mine: Tensor = mine) -> tuple[float, int, int]:
            return value, int(mine[row]), int(columns[column])

        # A little more, for the rounding of norms.
        possible = int((1.001 * norms[some.start] * reach >= top.threshold).sum())
        top.offer(A[mine] @ B[:possible].T, named)
    return [entry for _, entry in top.entries]
