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


NAMES = ("twin", "pure.safetensors", "sweep.safetensors", "view.html", "cached")


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_event(writers, name, replaces, tmp_path):
    *faults, events = kills.survivors(writers[name], tmp_path, replaces)
    assert faults == []
    assert int(events.split()[0]) >= 5


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", NAMES)
def test_full_disks(writers, name, replaces, tmp_path):
    for room in (0, 100, 5000):
        assert kills.on_a_full_disk(writers[name], tmp_path, replaces, room) == []


def test_what_is_not_recovered_is_found_out(writers, tmp_path, monkeypatch):
    """Else this would be a test that cannot fail."""
    for module in (disk, kills.ah.store.load, kills.ah.store.folder):
        monkeypatch.setattr(module, "recover", lambda folder: None)
    faults = kills.survivors(writers["twin"], tmp_path, True)
    assert any("a saved twin, to load" in fault for fault in faults)  # nothing is there
    assert any(": left" in fault for fault in faults)
