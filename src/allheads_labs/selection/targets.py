r"""Targets that read a few important tokens, of known smoothness (Takakura & Suzuki 2023, arXiv 2305.18699).

Three kinds. Two are shift-equivariant with the important coordinates at fixed lags: a function f of three coordinates
of the sequence, built from the definition of a smooth class, one wave for each dyadic block :math:`s \in \mathbb{N}^3`,

.. math:: f = \sum_s 2^{-\gamma(s)} \delta_s, \qquad \|\delta_s\|_2 = 1,

*mixed* with :math:`\gamma(s) = \langle a, s \rangle`, *anisotropic* with :math:`\gamma(s) = \max_i a_i s_i`. In the
third kind, *relative*, importance depends on the input: a function of each token, shifted at random for each sequence,
orders the tokens, and the target reads the first three, wherever they stand. No threshold on a single token can tell
which they are.

All have mean 0 and variance 1, up to sampling.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads import AllHeadsError

Kind = Literal["relative", "mixed", "anisotropic"]
#: How smooth f is in each of its coordinates.
SMOOTHNESS: dict[Kind, tuple[float, ...]] = {"mixed": (2.0, 2.5, 3.0), "anisotropic": (3.0, 6.0, 6.0)}
#: Which tokens, counted from the last, these coordinates come from.
LAGS = (0, 3, 7)
#: Blocks have frequencies below 2 to this power.
FINEST = 3
#: What the three most important tokens weigh, and how many more there are at least.
WEIGHTS = (1.0, 0.5, 0.25)
#: Levels of importance: of the first three, of the others (from, to), and how far apart sequences are.
LEVELS, REST, SHIFT, JITTER = (3.0, 2.0, 1.0), (-0.25, -4.25), 5.0, 0.1


@dataclass(frozen=True)
class Sequences:
    """Sequences, a target without noise, and the importance of every token; for fixed lags 1 or 0."""

    kind: Kind
    tokens: Float[Tensor, "n pos d_token"]
    target: Float[Tensor, " n"]
    importance: Float[Tensor, "n pos"]


def exponent(kind: Kind) -> float | None:
    r"""The theory's: errors fall as :math:`n^{-2a/(2a+1)}` up to logarithms, or faster; None where it names none here.

    The effective smoothness is :math:`a = \min_i a_i` if mixed, and :math:`a = (\sum_i 1/a_i)^{-1}` if anisotropic.

    >>> exponent("mixed"), exponent("anisotropic"), exponent("relative")
    (-0.8, -0.75, None)
    """
    if kind == "relative":
        return None
    every = SMOOTHNESS[kind]
    effective = min(every) if kind == "mixed" else 1 / sum(1 / a for a in every)
    return -2 * effective / (2 * effective + 1)


def sample(kind: Kind, draw: torch.Generator, shape: tuple[int, int, int], *, seed: int) -> Sequences:
    """Random sequences ``[n pos d_token]``; ``seed`` fixes the function, ``draw`` the points at which it is taken.

    Raises `AllHeadsError` if tokens are too few, or have too few dimensions.

    >>> sample("mixed", torch.Generator().manual_seed(0), (2, 8, 4), seed=0).tokens.shape
    torch.Size([2, 8, 4])
    """
    n, length, d_token = shape
    shortest = len(WEIGHTS) + 1 if kind == "relative" else max(LAGS) + 1
    if length < shortest or d_token < len(LAGS):
        got = f"{length} of {d_token} dimensions"
        raise AllHeadsError(f"{shortest} tokens or more of at least {len(LAGS)} dimensions", got, "Make them larger.")
    fixed = torch.Generator().manual_seed(seed)
    if kind == "relative":
        return _relative(draw, shape, fixed)
    tokens = torch.rand(n, length, d_token, generator=draw)
    chosen = torch.stack([tokens[:, length - 1 - lag, at] for at, lag in enumerate(LAGS)], -1)
    importance = torch.zeros(n, length)
    importance[:, [length - 1 - lag for lag in LAGS]] = 1.0
    # Centred, as learners like it; the function was read before.
    return Sequences(kind, 4 * (tokens - 0.5), smooth(chosen, kind, fixed), importance)


def blocks(kind: Kind) -> dict[tuple[int, ...], float]:
    r"""The blocks of f and their norms :math:`2^{-\gamma(s)}`, the constant left out.

    >>> blocks("mixed")[1, 0, 1] == 2 ** -(2.0 + 3.0), blocks("anisotropic")[1, 1, 0] == 2**-6
    (True, True)
    """
    smoothness = SMOOTHNESS[kind]
    made = {}
    for s in itertools.product(range(FINEST + 1), repeat=len(smoothness)):
        steps = [a * power for a, power in zip(smoothness, s, strict=True)]
        if any(s):
            made[s] = 2 ** -(sum(steps) if kind == "mixed" else max(steps))
    return made


def smooth(points: Float[Tensor, "n coordinate"], kind: Kind, fixed: torch.Generator) -> Float[Tensor, " n"]:
    """The function at points of the unit cube, divided by its norm: one random wave for each block."""
    total = torch.zeros(len(points), dtype=torch.float64)
    norms = blocks(kind)
    for s, norm in norms.items():
        wave = torch.full((len(points),), norm, dtype=torch.float64)
        for at, fineness in enumerate(s):
            phase = 2 * math.pi * torch.rand(1, generator=fixed, dtype=torch.float64)
            if fineness:
                frequency = int(torch.randint(2 ** (fineness - 1), 2**fineness, (1,), generator=fixed))
                # Cosines of whole frequencies have mean 0 and, times the root of 2, norm 1 on the unit interval.
                wave *= math.sqrt(2) * torch.cos(2 * math.pi * frequency * points[:, at].double() + phase)
        total += wave
    return (total / math.sqrt(sum(norm**2 for norm in norms.values()))).float()


def _relative(draw: torch.Generator, shape: tuple[int, int, int], fixed: torch.Generator) -> Sequences:
    n, length, d_token = shape
    first, rest = len(LEVELS), length - len(LEVELS)
    near = torch.tensor(LEVELS) + JITTER * (2 * torch.rand(n, first, generator=draw) - 1)
    far = REST[0] + (REST[1] - REST[0]) * torch.rand(n, rest, generator=draw)
    level = torch.cat([near, far], 1)
    others = torch.randn(n, length, d_token - 1, generator=draw)
    target = (torch.sin(1.5 * others[:, :first, 1]) * torch.tensor(WEIGHTS)).sum(1) / _SPREAD
    # Importance is not a direction: it bends with another coordinate.
    raised = level + SHIFT * torch.randn(n, 1, generator=draw) - 0.5 * torch.sin(2 * others[..., 0])
    latent = torch.cat([raised[..., None], others], -1)
    rotation = torch.linalg.qr(torch.randn(d_token, d_token, generator=fixed))[0]
    order = torch.rand(n, length, generator=draw).argsort(1)
    tokens = (latent @ rotation).gather(1, order[..., None].expand(-1, -1, d_token))
    return Sequences("relative", tokens, target, level.gather(1, order))


#: The standard deviation of the relative target: that of sin(1.5 x) for normal x, times the length of the weights.
_SPREAD = math.sqrt((1 - math.exp(-2 * 1.5**2)) / 2 * sum(weight**2 for weight in WEIGHTS))
