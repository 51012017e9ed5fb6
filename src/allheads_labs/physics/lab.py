"""Attention as motion in a potential, measured on a pretrained model: ``allheads lab physics``.

A unit is one part of the measurements (`allheads_labs.physics.parts`), for all layers and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from allheads import TwinBridge
from allheads_labs.kit.lab import Lab, Result, Unit
from allheads_labs.kit.text import texts_digest
from allheads_labs.kit.twins import twin_digest
from allheads_labs.physics import probing, report
from allheads_labs.physics.parts import PARTS, Size


def lab(twin: TwinBridge) -> Lab:
    """The lab on the twin of a pretrained model."""
    return Lab("physics", 1, partial(units, twin), partial(run, twin), tables, threads=None)


def units(twin: TwinBridge, quick: bool, seeds: int) -> list[Unit]:
    """All parts; each has all seeds, because they share what the twin computes."""
    about = {
        "twin": twin_digest(twin),
        "text": texts_digest(probing.documentation()),
        "size": asdict(Size.of(twin, quick, seeds)),
    }
    return [Unit(about | {"part": part}, 0, 1.0, alone=True) for part in PARTS]


def run(twin: TwinBridge, unit: Unit) -> dict[str, Any]:
    """Measure one part."""
    return PARTS[unit.setting["part"]](twin, Size(**unit.setting["size"]))


def parts(results: Sequence[Result]) -> dict[str, Any]:
    """What was found, by part."""
    return {result.setting["part"]: result.found for result in results}


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    return report.tables(parts(results))
