"""Time and memory of a conversion, and of caches, as JSON. 2 threads.

Memory of a conversion is what the process holds afterwards and what it held at most, beyond the loaded source.
"""

from __future__ import annotations

import gc
import json
import threading
import time
from pathlib import Path

import torch

import allheads as ah

PAGE = 4096


def main() -> None:
    torch.set_num_threads(2)
    started = time.perf_counter()
    source = ah.load()
    loaded = time.perf_counter() - started
    weights = sum(p.untyped_storage().nbytes() for p in source.original_model.parameters())
    before = _resident()
    seconds, peaks, twins = [], [], []
    for _ in range(3):
        with _Peak() as peak:
            started = time.perf_counter()
            twins.append(ah.convert(source))
            seconds.append(time.perf_counter() - started)
        peaks.append(peak.bytes - before)
        gc.collect()
    held = (_resident() - before) / len(twins)
    tokens = torch.randint(source.cfg.d_vocab, (1, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = _held(source.run_with_cache(tokens, return_cache_object=False)[1])
        theirs = _held(twins[0].run_with_cache(tokens, return_cache_object=False)[1])
        gates = twins[0].run_with_cache(
            tokens, names_filter=lambda name: name.endswith("hook_pattern_self"), return_cache_object=False
        )[1]
    result = {
        "seconds_load": round(loaded, 2),
        "seconds_convert": [round(s, 2) for s in seconds],
        "source_gigabytes": round(weights / 1e9, 3),
        "twin_extra_share_of_source": round(held / weights, 4),
        "peak_extra_share_of_source": round(peaks[0] / weights, 4),
        "cache_512_gigabytes": {"source": round(mine / 1e9, 3), "twin": round(theirs / 1e9, 3)},
        "cache_512_ratio": round(theirs / mine, 3),
        "patterns_on_self_512_gigabytes": round(_held(gates) / 1e9, 3),
    }
    print(json.dumps(result, indent=2))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _held(cache: dict[str, torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.values()}
    return sum(storages.values())


class _Peak:
    """The largest resident memory while it is open, looked at every 5 ms."""

    def __enter__(self) -> _Peak:
        self.bytes, self._done = _resident(), threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, _resident())

    def __exit__(self, *details: object) -> None:
        self._done.set()
        self._watcher.join()


if __name__ == "__main__":
    main()
