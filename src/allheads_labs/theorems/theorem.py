"""What a theorem is here, and how it is put to the test: random inputs, both precisions, error against its bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

#: The size of the first public check of these theorems.
TOKENS, DIMENSIONS, TRIALS = 20, 30, 100


@dataclass(frozen=True)
class Trial:
    """One random case: how many heads and bias tokens it took, the error, and what it may be."""

    heads: int
    bias_tokens: int
    error: float
    bound: float | None  # None where no bound is claimed


@dataclass(frozen=True)
class Theorem:
    """A statement, and a random case of it. ``exact`` ones must be within 1e-10 in float64.

    An impossibility is a theorem whose error must be *at least* the bound: ``least`` is then True.
    """

    name: str
    exact: bool
    trial: Callable[[torch.Generator, torch.dtype], Trial]
    least: bool = False


@dataclass(frozen=True)
class Verdict:
    """The worst case of a theorem in each precision."""

    claim: str
    heads: int
    bias_tokens: int
    error_float64: float
    bound_float64: float | None
    error_float32: float
    bound_float32: float | None
    holds: bool

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


EXACT = 1e-10


def judged(theorem: Theorem, trials: int = TRIALS, seed: int = 0) -> Verdict:
    """Put a theorem to the test on ``trials`` random cases in float64 and as many in float32."""
    worst, holds = {}, True
    for dtype in (torch.float64, torch.float32):
        draw = torch.Generator().manual_seed(seed)
        cases = [theorem.trial(draw, dtype) for _ in range(trials)]
        holds = holds and all(_holds(theorem, case, dtype) for case in cases)
        worst[dtype] = (min if theorem.least else max)(cases, key=lambda case: case.error)
    exact, single = worst[torch.float64], worst[torch.float32]
    return Verdict(
        theorem.name, exact.heads, exact.bias_tokens, exact.error, exact.bound, single.error, single.bound, holds
    )


def _holds(theorem: Theorem, case: Trial, dtype: torch.dtype) -> bool:
    if theorem.exact and dtype == torch.float64 and not case.error <= EXACT:
        return False
    if case.bound is None:
        return math.isfinite(case.error)
    return case.error >= case.bound if theorem.least else case.error <= case.bound
