"""Resident memory of this process, now and at most."""

from __future__ import annotations

import threading
from pathlib import Path

PAGE = 4096


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Peak:
    """The largest resident memory while it is open, looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self.bytes, self._done = resident(), threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *details: object) -> None:
        self._done.set()
        self._watcher.join()
