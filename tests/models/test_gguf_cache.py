"""The cache keeps only complete folders, notices damage, and survives interruptions and rivals."""

import logging
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from allheads import disk
from allheads.errors import AllHeadsError
from allheads.models import cache
from allheads.models.cache import cached_folder


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALLHEADS_CACHE", str(folder))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def build(folder: Path) -> None:
    (folder / "a.txt").write_text("first")
    (folder / "b.bin").write_bytes(bytes(range(256)) * 100)


def never(folder: Path) -> None:
    raise AssertionError("an intact folder was built again")


def test_an_intact_folder_is_built_once(root):
    made = cached_folder("key", build)
    assert made == root / "key"
    assert cached_folder("key", never) == made
    assert names(root) == ["key"]


def test_other_keys_are_other_folders(root):
    assert cached_folder("one", build) != cached_folder("two", build)


def test_the_user_cache_is_the_default(monkeypatch):
    monkeypatch.delenv("ALLHEADS_CACHE")
    assert "allheads" in cache.cache_root().parts


def flip(folder: Path) -> None:
    data = bytearray((folder / "b.bin").read_bytes())
    data[12_345] ^= 1
    (folder / "b.bin").write_bytes(data)


def cut(folder: Path) -> None:
    (folder / "b.bin").write_bytes((folder / "b.bin").read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / "a.txt").unlink()


def spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": ["a.txt"')


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [flip, cut, remove, spoil_manifest, empty_manifest, lose_manifest])
def test_damage_is_noticed_and_repaired(root, damage, caplog):
    folder = cached_folder("key", build)
    damage(folder)
    with caplog.at_level(logging.WARNING, "allheads"):
        assert cached_folder("key", build) == folder
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert "damaged" in caplog.text
    assert (folder / "b.bin").read_bytes() == bytes(range(256)) * 100
    assert cached_folder("key", never) == folder
    assert names(root) == ["key"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, AllHeadsError("a", "b", "c")])
def test_an_interrupted_build_leaves_nothing(root, stop):
    def interrupted(folder):
        build(folder)
        raise stop

    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        cached_folder("key", interrupted)
    assert names(root) == []


def test_an_interrupted_repair_leaves_the_damaged_folder_to_the_next_run(root):
    flip(cached_folder("key", build))

    def interrupted(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("key", interrupted)
    assert names(root) == ["key"]
    cached_folder("key", build)
    cached_folder("key", never)


def test_a_full_disk_is_explained(root):
    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(AllHeadsError, match=r"No space left on device.*ALLHEADS_CACHE") as error:
        cached_folder("key", full)
    assert isinstance(error.value.__cause__, OSError)
    assert names(root) == []


def test_a_cache_that_is_a_file_is_explained(root):
    root.write_text("not a folder")
    with pytest.raises(AllHeadsError, match="ALLHEADS_CACHE"):
        cached_folder("key", build)


def test_only_leftovers_of_the_dead_are_swept(root):
    """Of this machine: whose process is gone. Of others, which cannot be asked: what did not change for a day."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def leftover(process, node, age=0.0, kind="part"):
        folder = root / f".allheads-0f-1.{node}.{process}.{kind}"
        folder.mkdir(parents=True)
        (folder / "x").write_text("x")
        for path in (folder / "x", folder):
            os.utime(path, (time.time() - age,) * 2)
        return folder.name

    here = platform.node()
    kept = [leftover(os.getppid(), here, 9 * disk.STALE), leftover(8, "elsewhere.org", 60)]
    for gone in (
        (dead.pid, here),
        (os.getpid(), here),
        (7, "elsewhere.org", disk.STALE + 60),
        (dead.pid, here, 0, "old"),
    ):
        leftover(*gone)
    for name in (".ssh", "photos", ".allheads-mine"):
        (root / name).mkdir()
    cached_folder("key", build)
    # What was moved aside and has no successor is where it was.
    assert names(root) == sorted([*kept, ".allheads-mine", ".ssh", "key", "photos", "x"])
    cached_folder("key", never)


def test_a_rival_that_finished_first_wins(root):
    """The rival's folder is intact, so it stays; ours is dropped."""

    def slow(folder):
        build(folder)
        cached_folder("key", build)
        (root / "key" / "rival").write_text("was here")

    assert (cached_folder("key", slow) / "rival").exists()
    assert names(root) == ["key"]


MEET_AND_BUILD = """
import sys, time
from pathlib import Path
from allheads.models.cache import cached_folder

meeting, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def together(folder):
    (meeting / me).touch()
    deadline = time.monotonic() + 60
    while not (meeting / other).exists():
        assert time.monotonic() < deadline, "the other process never came"
        time.sleep(0.01)
    (folder / "b.bin").write_bytes(bytes(25_600))

assert (cached_folder("key", together) / "b.bin").stat().st_size == 25_600
"""


def test_two_processes_at_once(root, tmp_path):
    pair = ["left", "right"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    workers = [
        subprocess.Popen([sys.executable, "-c", MEET_AND_BUILD, str(tmp_path), *order], env=environment)
        for order in (pair, pair[::-1])
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    assert names(root) == ["key"]
    cached_folder("key", never)
