"""Regenerate the table of fits: ``python -m allheads.theory.fitting``.

Needs the development extras (SciPy, python-flint, tqdm). Every start is computed or drawn from a fixed seed, every
fit is rounded to the numbers that are stored, and those are certified. ``--only silu`` refits one activation and
keeps the rest of the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from allheads.theory.activations import activation_named
from allheads.theory.certificate import certify
from allheads.theory.family import Array, Family
from allheads.theory.gated_fits import GatedJob, gated_jobs
from allheads.theory.gates import Gate, GateSum
from allheads.theory.plain_fits import PlainJob, evaluate, fit_plain, plain_jobs
from allheads.theory.table import TABLE, Fit, fits, write_fits

DIGITS = 12
#: Alphas are multiples of this, so that their sum is exact in float64 whatever the order of adding.
ALPHA_GRID = 2.0**-40


def _short(x: float) -> float:
    return float(f"{x:.{DIGITS}g}")


def stored(family: Family, theta: Array, activation: str, *, gated: bool, domain: float) -> GateSum:
    """The gate sum with the coefficients as the table keeps them; the last alpha is the exact remainder."""
    alpha, delta, offsets, slopes = family.parts(theta)
    alphas = [round(float(a) / ALPHA_GRID) * ALPHA_GRID for a in alpha]
    if not gated:
        alphas[-1] = 1.0 - math.fsum(alphas[:-1])
    gates = tuple(
        Gate(
            tuple(_short(a) for a in offsets[family.head_of == h]),
            tuple(_short(k) for k in slopes[family.head_of == h]),
        )
        for h in range(family.heads)
    )
    deltas = tuple(_short(d) for d in delta)
    return GateSum(activation_named(activation), gated, gates, tuple(alphas), deltas, math.inf, domain)


def certified(family: Family, theta: Array, name: str, activation: str, *, domain: float = math.inf) -> Fit:
    """Round, certify and measure the amplification of one fit."""
    gated = math.isfinite(domain)
    gate_sum = stored(family, theta, activation, gated=gated, domain=domain)
    gate_sum = dataclasses.replace(gate_sum, max_error=_rounded_up(certify(gate_sum)))
    t = np.linspace(-1, 1, 4001) ** 3 * (domain if gated else 40.0)
    f = np.abs(evaluate(activation, t))
    return Fit(name, gate_sum, _short(round(family.amplification(theta, t, (0.3 if gated else 1.0) + f), 2)))


def _rounded_up(x: float, digits: int = 4) -> float:
    unit = 10.0 ** (math.floor(math.log10(x)) - digits + 1)
    return float(f"{(math.floor(x / unit) + 1) * unit:.{digits}g}")


def plain_rows(job: PlainJob) -> Iterator[Fit]:
    """The one fit of a plain job."""
    yield certified(*fit_plain(job), job.name, job.activation)


def gated_rows(job: GatedJob) -> Iterator[Fit]:
    """Every fit of a gated job."""
    activation, name, domain, fitted = job
    for family, theta in fitted():
        yield certified(family, theta, name, activation, domain=domain)


@dataclass(frozen=True)
class Job:
    """Some rows of the table, and how to make them."""

    activation: str
    gated: bool
    rows: Callable[[], Iterable[Fit]]


def jobs() -> Iterator[Job]:
    """All the work there is."""
    for plain in plain_jobs():
        yield Job(plain.activation, False, partial(plain_rows, plain))
    for gated in gated_jobs():
        yield Job(gated[0], True, partial(gated_rows, gated))


def main() -> None:
    """Fit, certify, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="refit one activation and keep the other rows")
    parser.add_argument("--kind", choices=("plain", "gated"), help="refit one kind and keep the other rows")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / TABLE)
    arguments = parser.parse_args()

    def chosen(activation: str, gated: bool) -> bool:
        return arguments.only in (None, activation) and arguments.kind in (None, "gated" if gated else "plain")

    everything = arguments.only is None and arguments.kind is None
    kept = [] if everything else [f for f in fits() if not chosen(f.gate_sum.activation.name, f.gate_sum.gated)]
    fresh: list[Fit] = []
    for job in tqdm([job for job in jobs() if chosen(job.activation, job.gated)], desc="fits"):
        fresh += job.rows()
    write_fits(arguments.output, kept + fresh)


if __name__ == "__main__":
    main()
