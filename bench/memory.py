"""Time and memory of a conversion, and of caches, as JSON. 2 threads.

Memory of a conversion is what the process holds afterwards and what it held at most, beyond the loaded source.
"""

from __future__ import annotations

import gc
import json
import time

import torch
from resident import Peak, resident

import allheads as ah


def main() -> None:
    torch.set_num_threads(2)
    started = time.perf_counter()
    source = ah.load()
    loaded = time.perf_counter() - started
    weights = sum(p.untyped_storage().nbytes() for p in source.original_model.parameters())
    before = resident()
    seconds, peaks, twins = [], [], []
    for _ in range(3):
        with Peak() as peak:
            started = time.perf_counter()
            twins.append(ah.convert(source))
            seconds.append(time.perf_counter() - started)
        peaks.append(peak.bytes - before)
        gc.collect()
    held = (resident() - before) / len(twins)
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


def _held(cache: dict[str, torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.values()}
    return sum(storages.values())


if __name__ == "__main__":
    main()
