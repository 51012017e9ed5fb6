"""A short selection of what threads do to one twin at the same time."""

from __future__ import annotations

from contextlib import nullcontext

from tests.adversary import threads

from allheads.corpus import run_sweep
from allheads.heads import bank
from allheads.twin import twin


def test_threads_are_right_or_refused():
    tally = threads.attempts(240, seed=0)
    assert tally.faults == []
    assert tally.right.total() > 10 and tally.refused.total() > 10


def test_plain_runs_go_side_by_side():
    tally = threads.attempts(80, seed=0, asks=("run",))
    assert tally.right["run"] == 80 and not tally.faults


def test_what_is_not_refused_is_found_out(monkeypatch):
    """Else this would be a test that cannot fail."""
    for module in (bank, twin, run_sweep):
        monkeypatch.setattr(module, "alone", lambda *modules: nullcontext())
    found = {name for name, _ in threads.attempts(240, seed=0).faults}
    assert found
