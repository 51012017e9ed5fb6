"""Means over seeds with Student's t intervals: few seeds, so wide, and no scipy needed.

Up to 10 degrees of freedom the quantiles are a table, beyond that the expansion of Fisher and Cornish (1960) in powers
of 1/df, off by less than 2e-4 there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from allheads.errors import AllHeadsError

#: The 97.5 % quantile for 1 to 10 degrees of freedom, and that of the normal distribution.
_TABLE = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_NORMAL = 1.959964


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval; none from a single seed."""

    mean: float
    half: float | None
    count: int

    def shown(self, form: str = ".3f", scale: float = 1.0) -> str:
        """For tables.

        >>> Interval(0.9876, 0.0012, 5).shown(".1f", 100)
        '98.8 ± 0.1'
        >>> Interval(-0.8, 0.06, 5).shown("+.2f")
        '-0.80 ± 0.06'
        """
        mean = format(scale * self.mean, form)
        return mean if self.half is None else f"{mean} ± {format(scale * self.half, form.lstrip('+'))}"


def quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t.

    >>> quantile(4), round(quantile(30), 3)
    (2.7764, 2.042)
    """
    if freedom < 1:
        raise AllHeadsError("at least one degree of freedom", str(freedom), "Two values have one.")
    if freedom <= len(_TABLE):
        return _TABLE[freedom - 1]
    z = _NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def interval(values: Sequence[float]) -> Interval:
    """The mean, and t times its standard error.

    >>> interval([1.0, 2.0, 3.0]).shown(".2f")
    '2.00 ± 2.48'
    """
    if not values:
        raise AllHeadsError("at least one value", "none", "Run the lab first.")
    half = None
    if len(values) > 1:
        half = quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.mean(values), half, len(values))
