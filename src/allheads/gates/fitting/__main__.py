"""Regenerate the table of fits: ``python -m allheads.gates.fitting``.

Needs the development extras (SciPy, python-flint, tqdm). Every start is computed or drawn from a fixed seed, every
fit is rounded to the numbers that are stored, and those are certified. Activations are fitted side by side, one
process each. ``--only silu`` refits one activation and keeps the rest of the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from allheads.errors import AllHeadsError
from allheads.gates.activations import activation_named
from allheads.gates.gates import Gate, GateSum
from allheads.gates.table import TABLE, Fit, fits, from_json, to_json, write_fits

try:
    from allheads.gates.fitting.certificate import certify
    from allheads.gates.fitting.families import Array, Family
    from allheads.gates.fitting.gated_fits import gated_jobs
    from allheads.gates.fitting.plain_fits import evaluate, plain_jobs
except ModuleNotFoundError as missing:
    raise AllHeadsError(
        "SciPy and python-flint", f"no {missing.name}", "Install them with `pip install allheads[fits]`."
    ) from missing

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


def certified(family: Family, theta: Array, name: str, activation: str, *, domain: float) -> Fit:
    """Round, certify and measure the amplification of one fit."""
    gated = math.isfinite(domain)
    gate_sum = stored(family, theta, activation, gated=gated, domain=domain)
    gate_sum = dataclasses.replace(gate_sum, max_error=_rounded_up(certify(gate_sum)))
    t = np.linspace(-1, 1, 4001) ** 3 * (domain if gated else 40.0)
    f = np.abs(evaluate(activation, t))
    return Fit(name, gate_sum, _short(round(family.amplification(theta, t, (0.3 if gated else 1.0) + f), 2)))


def _rounded_up(x: float) -> float:
    """To four digits."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 3)
    return float(f"{(math.floor(x / unit) + 1) * unit:.4g}")


def jobs() -> list[tuple[str, str, float, Callable[[], Iterable[tuple[Family, Array]]]]]:
    """Activation, name of the family, domain, and what fits them; the domain of plain activations is infinite."""
    return [*plain_jobs(), *gated_jobs()]


def rows(activation: str, gated: bool) -> list[dict[str, object]]:
    """Every fit of one activation, plain or gated, in the form that leaves a process."""
    return [
        to_json(certified(family, theta, name, activation, domain=domain))
        for fitted, name, domain, fit in jobs()
        if (fitted, math.isfinite(domain)) == (activation, gated)
        for family, theta in fit()
    ]


def kinds() -> list[tuple[str, bool]]:
    """The activations of the table, each with whether it is gated."""
    return list(dict.fromkeys((activation, math.isfinite(domain)) for activation, _, domain, _ in jobs()))


def main() -> None:
    """Fit, certify, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="refit one activation and keep the other rows")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / TABLE)
    arguments = parser.parse_args()
    chosen = [kind for kind in kinds() if arguments.only in (None, kind[0])]
    kept = [f for f in fits() if (f.gate_sum.activation.name, f.gate_sum.gated) not in chosen] if arguments.only else []
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # small matrices: a second thread only gets in the way
        os.environ[variable] = "1"
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        work = [pool.submit(rows, *kind) for kind in chosen]
        done = tqdm(as_completed(work), total=len(work), desc="fits", unit="activation")
        fresh = [from_json(row) for future in done for row in future.result()]
    write_fits(arguments.output, kept + fresh)


if __name__ == "__main__":
    main()
