"""A saved twin is there whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import allheads as ah
from allheads import disk
from allheads.store import save, tensors


def _content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def twin(any_kind):
    """One for all tests, which edit the same head."""
    return ah.convert(any_kind("llama"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("where", ["tensors", "record", "listing", "midway"])
def test_an_interrupted_save_leaves_nothing(twin, tmp_path, monkeypatch, error, where):
    def fail(*args, **kwargs):
        raise error("stopped")

    def half(values, path, *args):
        Path(path).write_bytes(b"half")
        fail()

    module, name = {
        "tensors": (save, "write_tensor_files"),
        "record": (save, "write_record"),
        "listing": (save, "listing"),
        "midway": (tensors, "save_file"),
    }[where]
    monkeypatch.setattr(module, name, half if where == "midway" else fail)
    with pytest.raises((error, ah.AllHeadsError)):
        ah.save(twin, tmp_path / "twin", standalone=True)
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    path = ah.save(twin, tmp_path / "twin")
    before = _content(path)
    with twin.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    monkeypatch.setattr(module, name, half if where == "midway" else fail)
    with pytest.raises((error, ah.AllHeadsError)):
        ah.save(twin, path)
    assert list(tmp_path.iterdir()) == [path]
    assert _content(path) == before


def test_a_twin_is_replaced(twin, source_of, run, tmp_path):
    path = ah.save(twin, tmp_path / "twin", standalone=True)
    with twin.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    ah.save(twin, path)
    assert list(tmp_path.iterdir()) == [path]
    assert {file.name for file in path.iterdir()} == {"README.md", "twin.json", "twin.safetensors"}
    assert torch.equal(run(ah.load(path, source=source_of("llama"))), run(twin))


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_interrupted_renaming_leaves_the_old_twin(twin, tmp_path, monkeypatch, nth):
    path = ah.save(twin, tmp_path / "twin")
    before = _content(path)
    rename, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        ah.save(twin, path)
    assert list(tmp_path.iterdir()) == [path]
    assert _content(path) == before


def test_the_old_twin_is_never_deleted_before_the_new_one_is_there(twin, tmp_path, monkeypatch):
    """Killed between two renames, the disk has the old one aside, and the new one complete."""
    path = ah.save(twin, tmp_path / "twin")
    before = _content(path)
    seen = []
    remove = disk.shutil.rmtree

    def rmtree(victim, **options):
        if (victim / "twin").is_dir():
            seen.append((_content(path), _content(victim / "twin")))
        remove(victim, **options)

    monkeypatch.setattr(disk.shutil, "rmtree", rmtree)
    ah.save(twin, path)
    assert seen == [(_content(path), before)]


def test_places_that_cannot_be_written(twin, tmp_path, monkeypatch):
    def fail(*args):
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(ah.AllHeadsError, match=r"a place to write .*PermissionError: read-only"):
        ah.save(twin, tmp_path / "twin")


def test_relative_names_home_and_links(twin, run, source_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ah.save(twin, "one") == tmp_path / "one"
    assert ah.save(twin, "~/two") == tmp_path / "two"
    (tmp_path / "link").symlink_to("one")
    with twin.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    ah.save(twin, "link")
    for name in ("one", "link"):
        assert torch.equal(run(ah.load(name, source=source_of("llama"))), run(twin))
    assert not torch.equal(run(ah.load("~/two", source=source_of("llama"))), run(twin))
