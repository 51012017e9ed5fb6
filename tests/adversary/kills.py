"""Writers killed at every event of the file system, and what is found there afterwards.

    python -m tests.adversary.kills

A writer runs in a process of its own, which ends without a word before its n-th event: opening for writing, making a
folder, renaming, removing, truncating. Then whoever reads finds the old content or the new one, whole; and one more
writing leaves nothing beside it. So it is where nothing was before, where an old file was, behind a link, and where
another writer was killed earlier; readers that put back what was moved aside are killed, too. The same writers meet a
disk that is full after so many bytes.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.cli import documents
from allheads.models.cache import cached_folder
from allheads.plots.view import View
from allheads.pure import runner
from allheads_labs import zoo
from allheads_labs.kit import results
from allheads_labs.kit.lab import Lab, Result, Unit

#: Of Python's audit events, those that change a disk.
EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree", "os.utime"}
KILLED = 9
#: What is in a writer's place before: nothing; an old file; a link to one.
STATES = ("new", "old", "link")
IDS = torch.arange(1, 9)[None]


@dataclass(frozen=True)
class Writer:
    """``write(path, version)`` for version 0 or 1; ``read(path)`` tells which it finds, and raises for neither.

    ``name`` is the path in its folder. Where ``grows``, version 0 is a part of version 1, and may be found before it.
    """

    write: Callable[[Path, int], Any]
    read: Callable[[Path], int]
    name: str
    states: tuple[str, ...] = STATES
    grows: bool = False


def _text(name: str, write: Callable[[Path, int], Any], *more: str) -> Writer:
    """A writer of a text that is read as it is."""
    with tempfile.TemporaryDirectory() as folder:
        path, texts = Path(folder, name), []
        for version in (0, 1):
            if "new" in more:
                path.write_text(_DOCUMENT)
            write(path, version)
            texts.append(path.read_text())

    def old(path: Path, version: int) -> None:
        if version == 0 and not path.exists():
            path.write_text(_DOCUMENT)
        write(path, version)

    only = tuple(state for state in STATES if state not in more)
    return Writer(old if more else write, lambda path: texts.index(path.read_text()), name, only)


_DOCUMENT = "Before.\n<!-- table -->\n<!-- /table -->\nAfter.\n"


def _pages(twin: ah.TwinBridge, report: Any) -> Iterator[Writer]:
    views = [View("attention", {"n": list(range(30_000))}, f"version {version}") for version in (0, 1)]
    figures = [ah.plots.gates(twin, IDS, layer) for layer in (0, 1)]
    graphs = [ah.graph(twin, IDS, 7, budget=budget) for budget in (3, 6)]
    found = [ah.attribute(twin, IDS, token) for token in (3, 5)]
    named = [replace(report, model=f"version {version}") for version in (0, 1)]
    yield _text("view.html", lambda path, version: views[version].save(path))
    yield _text("figure.html", lambda path, version: figures[version].save(path))
    yield _text("graph.graphml", lambda path, version: graphs[version].save(path))
    yield _text("report.html", lambda path, version: ah.plots.write_report(twin, named[version], IDS, path))
    yield _text("attribution.html", lambda path, version: ah.plots.write_attribution(found[version], graphs[0], path))
    yield _text("document.md", lambda path, version: documents.put(path, {"table": f"version {version}"}), "new")
    yield Writer(
        lambda path, version: graphs[version].save(path),
        lambda path: graphs.index(AttributionGraph.load(path)),
        "graph.json",
    )


def _folders() -> Iterator[Writer]:
    """In the cache: a copy, and what a lab has found."""

    def build(version: int) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for name in "ab":
                (folder / name).write_text(f"{version}" * 10_000)

        return write

    def cache(path: Path, version: int) -> None:
        os.environ["ALLHEADS_CACHE"] = str(path.parent)
        if path.exists():
            (path / "a").unlink(missing_ok=True)
        cached_folder(path.name, build(version))

    def cached(path: Path) -> int:
        os.environ["ALLHEADS_CACHE"] = str(path.parent)
        texts = {file.read_text() for file in cached_folder(path.name, build(1)).glob("[ab]")}
        return [{"0" * 10_000}, {"1" * 10_000}].index(texts)

    lab = Lab("adversary", 1, lambda quick, seeds: [], lambda unit: {}, lambda found: {})
    unit = Unit({"width": 3}, 0, 1.0)

    def keep(path: Path, version: int) -> None:
        os.environ["ALLHEADS_CACHE"] = str(path.parents[2])
        results.keep(lab, unit, Result(unit.setting, 0, {"version": version}, 1.5))

    def kept(path: Path) -> int:
        os.environ["ALLHEADS_CACHE"] = str(path.parents[2])
        if (found := results.fetch(lab, unit)) is None:
            raise FileNotFoundError(path)
        return int(found.found["version"])

    yield Writer(cache, cached, "cached", ("new", "old"))
    yield Writer(keep, kept, str(results.path_of(lab, unit).relative_to(results.cache_root())), ("new", "old"))


def _sweeps(twin: ah.TwinBridge) -> Iterator[Writer]:
    """A sweep that is saved, and one that writes as it goes."""
    settings = ah.corpus.SweepSettings(context=8, batch=2, every=1)
    sweeps = [ah.corpus.sweep(twin, [torch.arange(start, 20)], settings) for start in (1, 2)]
    corpora = [sweep.settings["corpus"] for sweep in sweeps]
    yield Writer(
        lambda path, version: sweeps[version].save(path),
        lambda path: corpora.index(ah.corpus.Sweep.load(path).settings["corpus"]),
        "sweep.safetensors",
    )
    texts = [torch.arange(1, 30)]
    whole = ah.corpus.sweep(twin, texts, settings)

    def go_on(path: Path, version: int) -> None:
        ah.corpus.sweep(twin, texts, settings, out=path, resume=True)
        if version == 0:
            replace(ah.corpus.Sweep.load(path), done=1, statistics=first).save(path)

    def found(path: Path) -> int:
        swept = ah.corpus.Sweep.load(path)
        if swept.done == whole.done:
            expected, tensors = whole.statistics.tensors(), swept.statistics.tensors()
            assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
        return int(swept.done == whole.done)

    first = _first_part(twin, texts, settings)
    yield Writer(go_on, found, "run.safetensors", grows=True)


def _first_part(twin: ah.TwinBridge, texts: Any, settings: Any) -> Any:
    """The statistics of a sweep's first part, from its first checkpoint."""
    kept: list[Any] = []

    def save(self: ah.corpus.Sweep, path: Path, original: Any = ah.corpus.Sweep.save) -> Path:
        found = original(self, path)
        kept.append(ah.corpus.Sweep.load(path).statistics)
        return found

    original = ah.corpus.Sweep.save
    ah.corpus.Sweep.save = save  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            ah.corpus.sweep(twin, texts, settings, out=Path(folder, "run"))
    finally:
        ah.corpus.Sweep.save = original  # type: ignore[method-assign]
    return kept[0]


def writers() -> dict[str, Writer]:
    """Everything that writes a file or folder for users, and the cache."""
    source = zoo.build("LlamaForCausalLM", seed=3).bridge
    twins = [ah.convert(source), ah.convert(source)]
    others = [*_pages(twins[0], ah.verify(source, twins[0], IDS)), *_sweeps(twins[0]), *_folders()]
    with twins[1].banks[0].edit() as heads:
        heads.W_O[3] *= 2.0
    with torch.no_grad():
        logits = [twin(IDS) for twin in twins]

    def saved(path: Path) -> int:
        with torch.no_grad():
            found = ah.load(path, source=source)(IDS)
        return [torch.equal(found, each) for each in logits].index(True)

    def weight(path: Path) -> float:
        sublayers = runner.load(path).sublayers
        return sum(float(heads.W_O.abs().sum()) for sublayer in sublayers for heads in sublayer.heads)

    with tempfile.TemporaryDirectory() as folder:
        weights = []
        for twin in twins:
            ah.pure.export(twin, Path(folder, "pure"))
            weights.append(weight(Path(folder, "pure")))
    listed = (
        Writer(lambda path, version: ah.save(twins[version], path), saved, "twin", ("new", "old")),
        Writer(
            lambda path, version: ah.pure.export(twins[version], path),
            lambda path: weights.index(weight(path)),
            "pure.safetensors",
        ),
        *others,
    )
    return {writer.name.partition("/")[0]: writer for writer in listed}


def killed(work: Callable[[], Any], home: Path, event: int) -> bool:
    """Work in a process that is killed before its n-th event in a folder. Was it?"""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    torch.set_num_threads(1)  # the threads of a pool are not in a fork
    seen = 0

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        # While a folder is removed, names are relative to it.
        here = str(home) in str(arguments[:1]) or not str(*arguments[:1]).startswith("/")
        if (name in EVENTS or writes) and here:
            seen += 1
            if seen == event:
                os._exit(KILLED)

    sys.addaudithook(watch)
    try:
        work()
    finally:
        os._exit(0)


@dataclass
class Kills:
    """How many there were, and a line for each after which something is neither old nor new, or is left behind."""

    writer: Writer
    folder: Path
    count: int = 0
    faults: list[str] = field(default_factory=list)

    def place(self, state: str) -> Path:
        """A path in a folder of its own, with what is there before."""
        home = self.folder / f"{len(list(self.folder.iterdir()))}"
        path = home / self.writer.name
        path.parent.mkdir(parents=True)
        if state == "link":
            (home / "elsewhere").mkdir()
            path.symlink_to(home / "elsewhere" / path.name)
        if state != "new":
            self.writer.write(path, 0)
        return path

    def home(self, path: Path) -> Path:
        return self.folder / path.relative_to(self.folder).parts[0]

    def kill(self, path: Path, event: int) -> bool:
        return killed(lambda: self.writer.write(path, 1), self.home(path), event)

    def at_every_event(self, state: str, earlier: int = 0) -> int:
        """Kill a writer at every event; ``earlier``: after one that was killed at this event. How many there are."""
        event = 0
        while True:
            event += 1
            path = self.place(state)
            if earlier:
                self.count += self.kill(path, earlier)
            if not self.kill(path, event):
                return event - 1
            self.count += 1
            self.look(path, state, f"{state}, {earlier}, event {event}")

    def readers(self, state: str, earlier: int) -> None:
        """Kill whoever reads, after a writer was killed at an event."""
        event = 0
        while True:
            event += 1
            path = self.place(state)
            self.count += self.kill(path, earlier)
            if not killed(lambda path=path: self.writer.read(path), self.home(path), event):
                return
            self.count += 1
            self.look(path, state, f"{state}, {earlier}, event {event} of a reader")

    def look(self, path: Path, state: str, what: str) -> None:
        """Read what is there, write once more, and see that nothing is beside it."""
        writer = self.writer
        try:
            found = writer.read(path)
        except (ah.AllHeadsError, ValueError, FileNotFoundError) as error:
            # Nothing was there before, and nothing is there now.
            if state != "new" or path.exists():
                self.faults.append(f"{what}: {error}")
        else:
            if found not in (0, 1) or (found == 0 and state == "new" and not writer.grows):
                self.faults.append(f"{what}: version {found}")
        writer.write(path, 1)
        if left := beside(self.home(path), writer):
            self.faults.append(f"{what}: left {left}")
        if writer.read(path) != 1:
            self.faults.append(f"{what}: the next writing is not found")
        if state == "link" and not path.is_symlink():
            self.faults.append(f"{what}: the link is gone")


def beside(home: Path, writer: Writer) -> list[str]:
    """What is in a folder beside the file or folder that belongs there."""
    hidden = [file.name for file in home.rglob(".*")]
    return hidden + [file.name for file in home.iterdir() if file.name not in (Path(writer.name).parts[0], "elsewhere")]


def survivors(writer: Writer, folder: Path, again: bool = True) -> Kills:
    """Kill a writer, and readers, at every event in every state; ``again``: also after an earlier kill."""
    kills = Kills(writer, folder)
    for state in writer.states:
        events = kills.at_every_event(state)
        for earlier in sorted({1 + events // 3, 1 + 2 * events // 3, events}) if again else ():
            kills.at_every_event(state, earlier)
            kills.readers(state, earlier)
    return kills


def on_a_full_disk(writer: Writer, folder: Path, state: str, room: int) -> list[str]:
    """Write where a file may not have more than ``room`` bytes; a line for each fault."""
    kills = Kills(writer, folder)
    path, faults = kills.place(state), []
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
    if left := beside(kills.home(path), writer):
        faults.append(f"left {left}")
    if state != "new" and writer.name != "cached" and writer.read(path) != 0:
        faults.append("not the old one")
    return faults


def main() -> int:
    logging.disable()  # that copies in the cache are damaged
    failures = total = 0
    print("| writer | kills | failures | seconds |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, writer in writers().items():
            started = time.monotonic()
            homes = Path(folder, f"kills of {name}"), Path(folder, f"full disks of {name}")
            for home in homes:
                home.mkdir()
            kills = survivors(writer, homes[0])
            full = [
                fault
                for state in writer.states
                for room in (0, 10)
                for fault in on_a_full_disk(writer, homes[1], state, room)
            ]
            faults = [*kills.faults, *full]
            failures, total = failures + len(faults), total + kills.count
            print(f"| {name} | {kills.count} | {len(faults)} | {time.monotonic() - started:.0f} |", *faults, sep="\n")
            sys.stdout.flush()
    print(f"| all | {total} | {failures} | |")
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main()))
