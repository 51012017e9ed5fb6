"""Writers killed at every event leave the old content or the new one, and a full disk the old one."""

from __future__ import annotations

import pytest
from tests.adversary import kills

from allheads import disk


@pytest.fixture(scope="module")
def writers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLHEADS_CACHE", "")
        yield kills.writers()


#: One for each way of writing; `python -m tests.adversary.kills` goes through all of them.
NAMES = ("twin", "pure.safetensors", "run.safetensors", "graph.json", "document.md", "cached", "labs")


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_event(writers, name, tmp_path):
    found = kills.survivors(writers[name], tmp_path, again=False)
    assert found.faults == []
    assert found.count >= 5 * len(writers[name].states)


@pytest.mark.parametrize(("name", "moved_aside"), [("twin", 10), ("cached", 12)])
def test_readers_are_killed_while_they_put_back_what_was_left(writers, name, moved_aside, tmp_path):
    found = kills.Kills(writers[name], tmp_path)
    found.readers("old", moved_aside)
    assert found.faults == [] and found.count >= 10


@pytest.mark.parametrize("name", NAMES)
def test_full_disks(writers, name, tmp_path):
    for state in writers[name].states:
        for room in (0, 10):
            assert kills.on_a_full_disk(writers[name], tmp_path, state, room) == []


def test_what_is_not_recovered_is_found_out(writers, tmp_path, monkeypatch):
    """Else this would be a test that cannot fail."""
    for module in (disk, kills.ah.store.load, kills.ah.store.folder):
        monkeypatch.setattr(module, "recover", lambda folder: None)
    faults = kills.survivors(writers["twin"], tmp_path, again=False).faults
    assert any("a saved twin, to load" in fault for fault in faults)  # nothing is there
    assert any(": left" in fault for fault in faults)
