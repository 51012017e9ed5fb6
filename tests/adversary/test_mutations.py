"""A small selection of the mutations, one of each kind on every second family: none that moves an output may pass."""

from __future__ import annotations

import random

import pytest
from tests.adversary.mutations import FAMILIES, KINDS, Pair, attempt, attempts

#: Others may exchange equal rows, or move what no text reaches: of these every one has to be caught.
ALWAYS = ("around a bank", "record of layers", "frozen")


@pytest.fixture(scope="module", params=FAMILIES[1::3])
def pair(request):
    return Pair.made(request.param, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_moves_an_output_passes(pair, kind):
    found = attempt(pair, kind, random.Random(f"{pair.family} {kind}"))
    assert found.outcome != "missed", found
    assert found.outcome == "caught" or kind not in ALWAYS or found.what == "nothing", found


def test_every_change_is_taken_back(pair):
    before = pair.gaps()
    assert max(before.values()) <= max(pair.honest.values())


def test_attempts_are_seeded():
    first, again = (list(attempts(3, seed=5)) for _ in range(2))
    assert first == again
