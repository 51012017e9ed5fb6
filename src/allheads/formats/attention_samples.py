"""Which windows HeadVis shows of a head: by how much it attends anywhere in them, a few from each fifth.

A window counts by its largest attention, the first query and the first key left out: many heads rest there. The limits
between intervals are quantiles over all windows. Of the highest interval the windows with the largest attention are
shown, of the others some at random.
"""

from __future__ import annotations

from bisect import bisect_right
from random import Random

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Intervals, windows shown of each, and of the highest.
INTERVALS, SAMPLES, TOP_SAMPLES = 5, 3, 10
#: Keys kept of each query, and attention that is too little to keep.
KEYS, LEAST = 8, 0.005


def largest(attention: Float[Tensor, "batch unit ..."], real: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch unit"]:
    """The largest attention in each window: of patterns ``[batch head query key]``, or openness."""
    inner = real[:, None, 1:]
    if attention.ndim == 3:
        return attention[:, :, 1:].masked_fill(~inner, 0.0).amax(-1)
    pairs = inner[..., None] & inner[:, :, None]
    return attention[:, :, 1:, 1:].masked_fill(~pairs, 0.0).amax((-2, -1))


def chosen_windows(largest: Float[np.ndarray, " window"], seed: str) -> list[tuple[int, int]]:
    """Interval, from 1, and number of each window that is shown of a head.

    >>> chosen_windows(np.linspace(0, 1, 50), "L0.A0")[-1]
    (5, 40)
    """
    n = len(largest)
    ordered = np.sort(largest)
    limits = [ordered[min(round(i * n / INTERVALS), n - 1)] for i in range(1, INTERVALS)]
    members: list[list[int]] = [[] for _ in range(INTERVALS)]
    for window, value in enumerate(largest.tolist()):
        members[bisect_right(limits, value)].append(window)
    *others, top = members
    draw = Random(seed)
    found = [
        (interval, window)
        for interval, group in enumerate(others, 1)
        for window in sorted(draw.sample(group, min(SAMPLES, len(group))))
    ]
    strongest = sorted(top, key=lambda window: (-largest[window], window))[:TOP_SAMPLES]
    return found + [(INTERVALS, window) for window in strongest]


def sparse(attention: Float[Tensor, "pos ..."]) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of one window: places ``query * length + key``, in order, and values to four digits.

    Of openness the key is the query.
    """
    length = len(attention)
    full = attention.double().cpu()
    if full.ndim == 1:
        values, keys = full[:, None], torch.arange(length)[:, None]
    else:
        values, keys = full.topk(min(KEYS, length), dim=-1)
    places = torch.arange(length)[:, None] * length + keys
    kept = values >= LEAST
    places, values = places[kept], values[kept]
    order = places.argsort()
    return places[order].int().numpy(), values[order].numpy().round(4)
