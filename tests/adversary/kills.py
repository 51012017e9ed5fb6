"""Writers killed at every event of the file system, and what is found there afterwards.

    python -m tests.adversary.kills

A writer runs in a process of its own, which ends without a word before its n-th event: opening for writing, making a
folder, renaming, removing, truncating. Then whoever reads finds the old content or the new one, whole; and one more
writing leaves nothing beside it. The same writers meet a disk that is full after so many bytes.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import allheads as ah
from allheads.models.cache import cached_folder
from allheads.plots.view import View
from allheads.pure import runner
from allheads_labs import zoo

#: Of Python's audit events, those that change a disk.
EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree", "os.utime"}
KILLED = 9


@dataclass(frozen=True)
class Writer:
    """``write(path, version)`` for version 0 or 1; ``read(path)`` tells which it finds, and raises for neither."""

    write: Callable[[Path, int], Any]
    read: Callable[[Path], int]
    name: str


def writers() -> dict[str, Writer]:
    """Everything that writes a file or folder for users, and the cache."""
    torch.manual_seed(0)
    source = zoo.build("LlamaForCausalLM", seed=3).bridge
    twins = [ah.convert(source), ah.convert(source)]
    with twins[1].banks[0].edit() as heads:
        heads.W_O[3] *= 2.0
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        logits = [twin(ids) for twin in twins]
    settings = ah.corpus.SweepSettings(context=8, batch=2, every=1)
    sweeps = [ah.corpus.sweep(twins[0], [torch.arange(start, 20)], settings) for start in (1, 2)]
    views = [View("attention", {"n": list(range(30_000))}, f"version {version}") for version in (0, 1)]

    def build(version: int) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for name in "ab":
                (folder / name).write_text(f"{version}" * 10_000)

        return write

    def cache(path: Path, version: int) -> None:
        os.environ["ALLHEADS_CACHE"] = str(path.parent)
        if path.exists():
            (path / "a").unlink()
        cached_folder(path.name, build(version))

    def cached(path: Path) -> int:
        os.environ["ALLHEADS_CACHE"] = str(path.parent)
        texts = {file.read_text() for file in cached_folder(path.name, build(1)).glob("[ab]")}
        return [{"0" * 10_000}, {"1" * 10_000}].index(texts)

    def saved(path: Path) -> int:
        with torch.no_grad():
            found = ah.load(path, source=source)(ids)
        return [torch.equal(found, each) for each in logits].index(True)

    def weight(path: Path) -> float:
        return float(runner.load(path).sublayers[1].heads[0].W_O.abs().sum())

    with tempfile.TemporaryDirectory() as folder:
        weights = []
        for twin in twins:
            ah.pure.export(twin, Path(folder, "pure"))
            weights.append(weight(Path(folder, "pure")))
    corpora = [sweep.settings["corpus"] for sweep in sweeps]
    pages = [view.html for view in views]
    listed = (
        Writer(lambda path, version: ah.save(twins[version], path), saved, "twin"),
        Writer(
            lambda path, version: ah.pure.export(twins[version], path),
            lambda path: weights.index(weight(path)),
            "pure.safetensors",
        ),
        Writer(
            lambda path, version: sweeps[version].save(path),
            lambda path: corpora.index(ah.corpus.Sweep.load(path).settings["corpus"]),
            "sweep.safetensors",
        ),
        Writer(
            lambda path, version: views[version].save(path), lambda path: pages.index(path.read_text()), "view.html"
        ),
        Writer(cache, cached, "cached"),
    )
    return {writer.name: writer for writer in listed}


def killed(writer: Writer, path: Path, version: int, event: int) -> bool:
    """Write in a process that is killed before its n-th event. Was it?"""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    torch.set_num_threads(1)  # the threads of a pool are not in a fork
    seen = 0

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        # While a folder is removed, names are relative to it.
        here = str(path.parent) in str(arguments[:1]) or not str(*arguments[:1]).startswith("/")
        if (name in EVENTS or writes) and here:
            seen += 1
            if seen == event:
                os._exit(KILLED)

    sys.addaudithook(watch)
    try:
        writer.write(path, version)
    finally:
        os._exit(0)


def survivors(writer: Writer, folder: Path, replaces: bool) -> list[str]:
    """Kill a writer at every event; a line for each time that something is neither old nor new, or is left behind."""
    faults, event = [], 0
    while True:
        event += 1
        home = folder / f"{replaces}-{event}"
        home.mkdir()
        path = home / writer.name
        if replaces:
            writer.write(path, 0)
        if not killed(writer, path, 1, event):
            return [*faults, f"{event - 1} events"]
        try:
            found = writer.read(path)
        except (ah.AllHeadsError, ValueError, FileNotFoundError) as error:
            # Nothing was there before, and nothing is there now.
            if replaces or path.exists():
                faults.append(f"event {event}: {error}")
        else:
            if found not in (0, 1) or (found == 0 and not replaces):
                faults.append(f"event {event}: version {found}")
        writer.write(path, 1)
        if (left := sorted(file.name for file in home.iterdir())) != [writer.name]:
            faults.append(f"event {event}: left {left}")
        if writer.read(path) != 1:
            faults.append(f"event {event}: the next writing is not found")


def on_a_full_disk(writer: Writer, folder: Path, replaces: bool, room: int) -> list[str]:
    """Write where a file may not have more than ``room`` bytes; lines as above."""
    home = folder / f"full-{replaces}-{room}"
    home.mkdir()
    path, faults = home / writer.name, []
    if replaces:
        writer.write(path, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        writer.write(path, 1)
        faults.append(f"{room} bytes were room enough")
    except ah.AllHeadsError as error:
        if "File too large" not in str(error):
            faults.append(str(error))
    except Exception as error:
        faults.append(repr(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if (left := sorted(file.name for file in home.iterdir())) != [writer.name] * replaces:
        faults.append(f"left {left}")
    if replaces and writer.name != "cached" and writer.read(path) != 0:
        faults.append("not the old one")
    return faults


def main() -> int:
    logging.disable()  # that copies in the cache are damaged
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, writer in writers().items():
            home = Path(folder, name.partition(".")[0])
            home.mkdir()
            for replaces in (False, True):
                *faults, events = survivors(writer, home, replaces)
                full = [fault for room in (0, 100, 5000) for fault in on_a_full_disk(writer, home, replaces, room)]
                failures += len(faults) + len(full)
                what = "replaces an old one" if replaces else "is new"
                print(
                    f"| {name} | {what} | {events} | {len(faults)} | {len(full)} |",
                    *faults,
                    *full,
                    sep="\n",
                    flush=True,
                )
    print(f"{failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main()))
