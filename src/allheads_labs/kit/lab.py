"""What a lab is: units of work, each one setting with one seed, and tables and claims made of their results.

A new lab is a package with a `Lab` called ``LAB`` in ``lab.py``, a ``draw`` in ``figure.py``, and a line in
`allheads_labs.kit.registry`. `allheads_labs.kit.running` does the rest: order, processes, time, and results on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """One setting with one seed; ``setting`` is plain JSON.

    ``cost`` is how many seconds it took where the lab was written: only the proportions matter. Units that measure time
    run ``alone``, when no other process is at work.
    """

    setting: Mapping[str, Any]
    seed: int
    cost: float
    alone: bool = False


@dataclass(frozen=True)
class Result:
    """What a unit found, as JSON, and how many seconds it took."""

    setting: Mapping[str, Any]
    seed: int
    found: Mapping[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"setting": dict(self.setting), "seed": self.seed, "found": self.found, "seconds": self.seconds}


@dataclass(frozen=True)
class Claim:
    """A sentence that the lab puts to the test, what was measured, and whether the data say so too."""

    claim: str
    measured: str
    holds: bool

    def __post_init__(self) -> None:
        # Comparisons of numpy's numbers are not what JSON knows as bool.
        object.__setattr__(self, "holds", bool(self.holds))


def _no_claims(results: Sequence[Result]) -> list[Claim]:
    return []


@dataclass(frozen=True)
class Lab:
    """An experiment. ``version`` is of its code: raise it when results would change, and old ones are left alone.

    Its functions are those of modules, so that they can be sent to other processes.

    Attributes:
        units: what is to be done, for a number of seeds, in ``quick`` or full form; a short one that is typical first.
        run: does one unit.
        tables: Markdown tables by the names of their markers in ``docs/labs.md``.
        claims: what the results say, one by one.
        seeds: of a full run; a quick one has a single seed.
        threads: of a unit; None for as many as torch takes.
    """

    name: str
    version: int
    units: Callable[[bool, int], list[Unit]]
    run: Callable[[Unit], dict[str, Any]]
    tables: Callable[[Sequence[Result]], dict[str, str]]
    claims: Callable[[Sequence[Result]], list[Claim]] = _no_claims
    seeds: int = 5
    threads: int | None = 1

    def fingerprint(self, unit: Unit) -> str:
        """The name of a unit's result: of the lab, its version, the setting and the seed, and of nothing else."""
        about = json.dumps([self.name, self.version, unit.setting, unit.seed], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:20]
