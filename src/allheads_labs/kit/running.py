"""Running a lab: finished units are fetched, the others are done and kept one by one, within the minutes allowed.

1. Units that are kept are not run again: an interrupted run resumes, and loses the units in work at most.
2. The first unit that is left tells how fast this machine is. If what is left would pass the limit, that is an error,
   which says how long it would take; the unit is kept.
3. A quick run stays in this process. A full run has two processes with one thread each; what measures time comes last,
   alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from allheads import AllHeadsError
from allheads.progress import bar
from allheads_labs.kit import results
from allheads_labs.kit.lab import Lab, Result, Unit

#: Minutes that a run may take unless its user allows more, and processes of a full run.
FULL, QUICK, PROCESSES = 15.0, 1.0, 2


def run(lab: Lab, *, quick: bool, seeds: int, minutes: float | None = None) -> list[Result]:
    """All results of a lab, in the order of its units.

    Raises `AllHeadsError` for no seeds, and for more than the minutes allow.
    """
    if seeds < 1:
        raise AllHeadsError("at least one seed", str(seeds), f"A full run has {lab.seeds}.")
    units = lab.units(quick, seeds)
    processes = 1 if quick else max(1, min(PROCESSES, os.cpu_count() or 1))
    allowed = 60 * ((QUICK if quick else FULL) if minutes is None else minutes)
    done = {number: result for number, unit in enumerate(units) if (result := results.fetch(lab, unit)) is not None}
    left = [number for number in range(len(units)) if number not in done]
    with bar(lab.name, total=len(units), initial=len(done)) as progress:
        if left and not done:
            number = left.pop(0)
            done[number] = perform(lab, units[number])
            progress.update()
        speed = statistics.median(done[number].seconds / units[number].cost for number in done) if done else 1.0
        _refuse_more_than(allowed, estimate([units[number] for number in left], processes, speed), seeds)
        for number, result in _performed(lab, {number: units[number] for number in left}, processes):
            done[number] = result
            progress.update()
    return [done[number] for number in range(len(units))]


def perform(lab: Lab, unit: Unit) -> Result:
    """Do one unit, on as many threads as the lab says, and keep what it found."""
    threads = torch.get_num_threads()
    torch.set_num_threads(lab.threads or threads)
    started = time.perf_counter()
    try:
        findings = lab.run(unit)
    finally:
        torch.set_num_threads(threads)
    return results.keep(lab, unit, Result(unit.setting, unit.seed, findings, time.perf_counter() - started))


def estimate(units: Sequence[Unit], processes: int, speed: float) -> float:
    """Seconds that units will take where each takes ``speed`` times its cost.

    >>> estimate([Unit({}, 0, 10.0), Unit({}, 1, 10.0), Unit({}, 0, 5.0, alone=True)], 2, 1.5)
    22.5
    """
    return speed * sum(unit.cost / (1 if unit.alone else processes) for unit in units)


def _refuse_more_than(allowed: float, seconds: float, seeds: int) -> None:
    if seconds <= allowed:
        return
    fewer = int(seeds * allowed / seconds)
    raise AllHeadsError(
        f"a run within {allowed / 60:.0f} minutes",
        f"about {seconds / 60:.0f} minutes of work left for {seeds} seeds, at the speed of what is done",
        f"Pass {f'--seeds {fewer}, or ' if fewer else ''}--minutes {seconds / 60 + 1:.0f}; what is done is kept.",
    )


def _performed(lab: Lab, units: dict[int, Unit], processes: int) -> Iterator[tuple[int, Result]]:
    """Units by number, each with its result as soon as there is one; those that run alone come last."""
    together = [(lab, unit, number) for number, unit in units.items() if not unit.alone]
    if processes > 1 and len(together) > 1:
        # The longest first, so that no process is left with one at the end.
        together.sort(key=lambda work: -work[1].cost)
        # Leaving this block in any way ends the processes: on Ctrl-C, too, which they do not hear themselves.
        ignoring = (processes, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        with multiprocessing.get_context("spawn").Pool(*ignoring) as pool:
            yield from pool.imap_unordered(_perform_numbered, together)
    else:
        yield from map(_perform_numbered, together)
    yield from (_perform_numbered((lab, unit, number)) for number, unit in units.items() if unit.alone)


def _perform_numbered(work: tuple[Lab, Unit, int]) -> tuple[int, Result]:
    lab, unit, number = work
    return number, perform(lab, unit)
