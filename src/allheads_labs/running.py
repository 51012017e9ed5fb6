"""Running a lab: what is done is fetched, the rest is done and kept at once, in good time or not at all.

1. Units that are on the shelf are not run again: an interrupted run resumes, and loses the units in work at most.
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
from collections.abc import Callable, Iterator, Sequence

import torch

from allheads.errors import AllHeadsError
from allheads_labs import results_store as shelf
from allheads_labs.lab import Lab, Result, Unit

#: Minutes that a run may take unless its user allows more, and processes of a full run.
FULL, QUICK, PROCESSES = 15.0, 1.0, 2

Told = Callable[[Unit], object]


def run(
    lab: Lab, *, quick: bool, seeds: int, minutes: float | None = None, told: Told = lambda _: None
) -> list[Result]:
    """All results of a lab, in the order of its units; ``told`` is called for each as it is finished.

    Raises `AllHeadsError` for no seeds, and for more than the minutes allow.
    """
    if seeds < 1:
        raise AllHeadsError("at least one seed", str(seeds), f"A full run has {lab.seeds}.")
    units = lab.units(quick, seeds)
    processes = 1 if quick else max(1, min(PROCESSES, os.cpu_count() or 1))
    allowed = 60 * ((QUICK if quick else FULL) if minutes is None else minutes)
    done = {number: found for number, unit in enumerate(units) if (found := shelf.fetch(lab, unit)) is not None}
    for number in done:
        told(units[number])
    left = [number for number in range(len(units)) if number not in done]
    if left and not done:
        number = left.pop(0)
        done[number] = perform(lab, units[number])
        told(units[number])
    speed = statistics.median(done[number].seconds / units[number].cost for number in done) if done else 1.0
    _in_time([units[number] for number in left], processes, speed, allowed, seeds)
    together = [number for number in left if not units[number].alone]
    for number, result in _performed(lab, units, together, processes):
        done[number] = result
        told(units[number])
    for number in left:
        if units[number].alone:
            done[number] = perform(lab, units[number])
            told(units[number])
    return [done[number] for number in range(len(units))]


def perform(lab: Lab, unit: Unit) -> Result:
    """Do one unit, on one thread, and keep what it found."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        found = lab.run(unit)
    finally:
        torch.set_num_threads(threads)
    return shelf.keep(lab, unit, Result(unit.setting, unit.seed, found, time.perf_counter() - started))


def estimate(units: Sequence[Unit], processes: int, speed: float) -> float:
    """Seconds that units will take where each takes ``speed`` times its cost.

    >>> estimate([Unit({}, 0, 10.0), Unit({}, 1, 10.0), Unit({}, 0, 5.0, alone=True)], 2, 1.5)
    22.5
    """
    return speed * sum(unit.cost / (1 if unit.alone else processes) for unit in units)


def _in_time(left: Sequence[Unit], processes: int, speed: float, allowed: float, seeds: int) -> None:
    seconds = estimate(left, processes, speed)
    if seconds <= allowed:
        return
    fewer = int(seeds * allowed / seconds)
    raise AllHeadsError(
        f"a run within {allowed / 60:.0f} minutes",
        f"about {seconds / 60:.0f} minutes of work left for {seeds} seeds, at the speed of what is done",
        f"Pass {f'--seeds {fewer}, or ' if fewer else ''}--minutes {seconds / 60 + 1:.0f}; what is done is kept.",
    )


def _performed(lab: Lab, units: Sequence[Unit], numbers: Sequence[int], processes: int) -> Iterator[tuple[int, Result]]:
    if processes == 1 or len(numbers) < 2:
        for number in numbers:
            yield number, perform(lab, units[number])
        return
    # Leaving this block in any way ends the processes: on Ctrl-C, too, which they do not hear themselves.
    with multiprocessing.get_context("spawn").Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        # The longest first, so that no process is left with one at the end.
        work = [(lab, units[number], number) for number in sorted(numbers, key=lambda each: -units[each].cost)]
        yield from pool.imap_unordered(_elsewhere, work)


def _elsewhere(work: tuple[Lab, Unit, int]) -> tuple[int, Result]:
    lab, unit, number = work
    return number, perform(lab, unit)
