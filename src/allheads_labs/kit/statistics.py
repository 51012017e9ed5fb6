"""Means with intervals, by Student's t over seeds or by resampling, and rank correlations."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads import AllHeadsError
from allheads.extras import extra

stats = extra("scipy.stats", "labs", "measure intervals and ranks")
#: Resamples of a bootstrap.
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval; none from a single seed."""

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        """The lower end; the mean if there is a single seed."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + (self.half or 0.0)

    def shown(self, form: str = ".3f", scale: float = 1.0) -> str:
        """For tables.

        >>> Interval(0.9876, 0.0012, 5).shown(".1f", 100)
        '98.8 ± 0.1'
        >>> Interval(-0.8, 0.06, 5).shown("+.2f")
        '-0.80 ± 0.06'
        """
        mean = format(scale * self.mean, form)
        return mean if self.half is None else f"{mean} ± {format(scale * self.half, form.lstrip('+'))}"


def interval(values: Collection[float]) -> Interval:
    """The mean, and t times its standard error. Raises `AllHeadsError` for no values.

    >>> interval([1.0, 2.0, 3.0]).shown(".2f")
    '2.00 ± 2.48'
    """
    every = [float(value) for value in values]
    if not every:
        raise AllHeadsError("at least one value", "none", "Run the lab first.")
    half = float(stats.t.ppf(0.975, len(every) - 1) * stats.sem(every)) if len(every) > 1 else None
    return Interval(sum(every) / len(every), half, len(every))


def bootstrap(values: Collection[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean, and the middle 95 % of means of resampled values.

    >>> bootstrap([0.5, 0.5, 0.5])
    (0.5, 0.5, 0.5)
    """
    data = torch.tensor(list(values), dtype=torch.float64)
    picks = torch.randint(len(data), (RESAMPLES, len(data)), generator=torch.Generator().manual_seed(seed))
    low, high = data[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(data.mean()), low, high


def rank_correlation(first: Float[Tensor, "*batch n"], second: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Spearman's, over the last dimension, between -1 and 1; what is equal shares its rank, what is constant gives nan.

    Raises `AllHeadsError` for different shapes, or fewer than two values.

    >>> round(float(rank_correlation(torch.tensor([1.0, 5.0, 7.0]), torch.tensor([0.1, 0.9, 0.2]))), 6)
    0.5
    """
    if first.shape != second.shape or first.shape[-1] < 2:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise AllHeadsError("two readings of the same two things or more", got, "Give a value of each for each thing.")
    ranks = (stats.rankdata(values.numpy(force=True), axis=-1) for values in (first, second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return torch.as_tensor(stats.pearsonr(*ranks, axis=-1).statistic)
