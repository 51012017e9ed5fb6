"""The training loop of small networks: AdamW, gradients that are cut, a rate that warms up and decays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

#: Share of the full rate at a step of so many.
Shape = Callable[[int, int], float]
#: Cuts gradients in place.
Cut = Callable[[Sequence[nn.Parameter]], object]


def held(step: int, steps: int) -> float:
    """Warm-up, constant for half of the steps, then down to 2 % in a line.

    >>> [held(step, 1000) for step in (24, 499, 750, 999)]
    [0.5, 1.0, 0.5, 0.02]
    """
    return warmed(step, steps) * min(1.0, max(0.02, 2 * (1 - step / steps)))


def cosine(step: int, steps: int) -> float:
    """Warm-up, then half a cosine down to 1 %."""
    return warmed(step, steps) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def warmed(step: int, steps: int) -> float:
    """From 0 to 1 in a line over the first 50 steps, or a tenth of them."""
    return min(1.0, (step + 1) / min(50, max(1, steps // 10)))


def together(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients cut so that their norm, of all together, is 1 at most."""
    nn.utils.clip_grad_norm_(parameters, 1.0)


def fit(
    parameters: Sequence[nn.Parameter],
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    shape: Shape = held,
    decay: float = 0.0,
    cut: Cut = together,
) -> None:
    """Move parameters downhill in place; ``loss_at`` gives the loss of a step, ``decay`` is AdamW's on weights."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * shape(step, steps)
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        cut(parameters)
        optimiser.step()
