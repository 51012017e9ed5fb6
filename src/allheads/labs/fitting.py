"""The training loop of small networks: AdamW, gradients that are cut, a rate that warms up and decays."""

from __future__ import annotations

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
    warm = min(1.0, (step + 1) / min(50, max(1, steps // 10)))
    return warm * min(1.0, max(0.02, 2 * (1 - step / steps)))


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
