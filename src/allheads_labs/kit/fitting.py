"""Small networks: drawn from a seed, and trained by AdamW with clipped gradients and a learning rate that decays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Share of the full learning rate at a step of so many.
Schedule = Callable[[int, int], float]


def warmed(step: int, steps: int) -> float:
    """From 0 to 1 in a line over the first 50 steps, or a tenth of them."""
    return min(1.0, (step + 1) / min(50, max(1, steps // 10)))


def constant(step: int, steps: int) -> float:
    """The full rate throughout."""
    return 1.0


def linear(step: int, steps: int) -> float:
    """Warm-up, constant for half of the steps, then down to 2 % in a line.

    >>> [linear(step, 1000) for step in (24, 499, 750, 999)]
    [0.5, 1.0, 0.5, 0.02]
    """
    return warmed(step, steps) * min(1.0, max(0.02, 2 * (1 - step / steps)))


def cosine(step: int, steps: int) -> float:
    """Warm-up, then half a cosine down to 1 %."""
    return warmed(step, steps) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@dataclass(frozen=True)
class Recipe:
    """How parameters are trained: steps, learning rate and its schedule, and AdamW's weight decay."""

    steps: int
    rate: float
    schedule: Schedule = linear
    weight_decay: float = 0.0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's global chance is that of a seed; afterwards it is what it was.

    >>> with seeded(0):
    ...     drawn = torch.rand(2)
    >>> with seeded(0):
    ...     torch.equal(torch.rand(2), drawn)
    True
    """
    with torch.random.fork_rng(devices=[]):
        # Unlike torch.manual_seed, this leaves other devices alone.
        torch.default_generator.manual_seed(seed)
        yield


def clip_together(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients clipped so that their norm, of all together, is 1 at most."""
    nn.utils.clip_grad_norm_(parameters, 1.0)


def fit(
    parameters: Sequence[nn.Parameter],
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    clip: Callable[[Sequence[nn.Parameter]], object] = clip_together,
) -> None:
    """Train parameters in place; ``loss_at`` gives the loss of a step, ``clip`` clips gradients in place."""
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.weight_decay)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * recipe.schedule(step, recipe.steps)
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        clip(parameters)
        optimiser.step()
