"""Attention as motion in a potential, measured on a pretrained model: ``allheads lab physics``.

A unit is one part of the measurements (`allheads_labs.physics.parts`), for all layers and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from allheads_labs.kit.lab import Lab, Result, Unit
from allheads_labs.kit.twins import twin_of
from allheads_labs.physics import report
from allheads_labs.physics.parts import PARTS, Size


def lab(model: str) -> Lab:
    """The lab on a model by name, folder or hub id."""
    return Lab("physics", 1, partial(units, model), run, tables, threads=None)


def units(model: str, quick: bool, seeds: int) -> list[Unit]:
    """All parts; each has all seeds, because they share what the twin computes."""
    size = asdict(Size.of(twin_of(model), quick, seeds))
    return [Unit({"model": model, "part": part, "size": size}, 0, 1.0, alone=True) for part in PARTS]


def run(unit: Unit) -> dict[str, Any]:
    """Measure one part."""
    return PARTS[unit.setting["part"]](twin_of(unit.setting["model"]), Size(**unit.setting["size"]))


def parts(results: Sequence[Result]) -> dict[str, Any]:
    """What was found, by part."""
    return {result.setting["part"]: result.found for result in results}


def tables(results: Sequence[Result]) -> dict[str, str]:
    """By the names of their markers."""
    return report.tables(parts(results))
