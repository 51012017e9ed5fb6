r"""Linear probes for many parts at once: ridge regression on classes, from sums, so that no activation is kept.

For every fold the sums ``G = X^T X`` and ``C = X^T Y`` are taken, Y one-hot. A probe for a held-out fold is
``W = (G + lambda D)^-1 C`` from the sums of all others, and its answer the class with the largest ``x W``. Lambda is a
fixed part of the mean square of the features; the constant is not shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

#: The ridge, as a part of the mean diagonal of G.
RIDGE = 1e-4


@dataclass(frozen=True)
class Task:
    """A question about tokens: what are the right answers? -1 where it is not asked.

    ``taught`` has the labels that probes are trained on, a row each: the right ones first, then shuffled ones.
    """

    name: str
    classes: tuple[str, ...]
    taught: Int[Tensor, "way token"]

    @classmethod
    def of(cls, name: str, classes: tuple[str, ...], labels: Int[Tensor, " token"], seeds: int) -> Task:
        """With as many shuffles as ``seeds``, among the tokens that are asked about."""
        asked, rows = (labels >= 0).nonzero()[:, 0], labels.repeat(1 + seeds, 1)
        for seed in range(seeds):
            order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
            rows[1 + seed, asked] = labels[asked[order]]
        return cls(name, classes, rows)

    @property
    def right(self) -> Int[Tensor, " token"]:
        """The right answers."""
        return self.taught[0]

    def targets(self, rows: Tensor) -> Float[Tensor, "token way*class"]:
        """One-hot, all zero where nothing is asked."""
        labels, count = self.taught[:, rows], len(self.classes)
        hot = F.one_hot(labels.clamp_min(0), count).float() * (labels >= 0)[..., None]
        return hot.transpose(0, 1).flatten(1)

    def majority(self, fold: Int[Tensor, " token"], folds: int) -> list[float]:
        """How often the commonest answer of the other folds is right, by fold."""
        shares = []
        for number in range(folds):
            test, train = (self.right[chosen & (self.right >= 0)] for chosen in (fold == number, fold != number))
            shares.append(float((test == train.bincount().argmax()).double().mean()))
        return shares


class Sums:
    """The sums of one task and one set of parts, by fold; then its probes, and how often they are right."""

    def __init__(self, task: Task, folds: int, parts: int, width: int) -> None:
        self.task = task
        columns = task.taught.shape[0] * len(task.classes)
        self.G = torch.zeros(folds, parts, width + 1, width + 1, dtype=torch.float64)
        self.C = torch.zeros(folds, parts, width + 1, columns, dtype=torch.float64)
        self.hits = torch.zeros(folds, parts, task.taught.shape[0], dtype=torch.float64)
        self.asked = torch.zeros(folds, dtype=torch.float64)
        self.probes: Float[Tensor, "fold part width column"] | None = None

    def add(self, fold: int, X: Float[Tensor, "part token width"], rows: Int[Tensor, " token"]) -> None:
        """What some tokens add; X ends with a constant."""
        asked = self._asked(rows)
        X, Y = X[:, asked], self.task.targets(rows[asked])
        self.G[fold] += X.mT @ X
        self.C[fold] += X.mT @ Y

    def solve(self) -> None:
        """Probes for every fold from all the others; the sums are given up."""
        G, C = (total.sum(0) - total for total in (self.G, self.C))
        size = G[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
        ridge = torch.ones(G.shape[-1], dtype=torch.float64)
        ridge[-1] = 1e-9
        G = G + RIDGE * size[..., None, None] * torch.diag(ridge)
        self.probes = torch.linalg.solve(G, C).float()
        del self.G, self.C

    def test(self, fold: int, X: Float[Tensor, "part token width"], rows: Int[Tensor, " token"]) -> None:
        """Count right answers on tokens of a fold that its probes have not seen."""
        assert self.probes is not None
        asked = self._asked(rows)
        answers = (X[:, asked] @ self.probes[fold]).unflatten(-1, (-1, len(self.task.classes))).argmax(-1)
        self.hits[fold] += (answers == self.task.right[rows[asked], None]).double().sum(1)
        self.asked[fold] += int(asked.sum())

    def accuracy(self) -> Float[Tensor, "fold part way"]:
        """Shares of right answers."""
        return self.hits / self.asked[:, None, None]

    def _asked(self, rows: Int[Tensor, " token"]) -> Bool[Tensor, " token"]:
        return self.task.right[rows] >= 0
