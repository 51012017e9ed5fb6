"""The attention view of 64 and 1,024 tokens, and the explorer of 64: time to build, size, first paint, hover."""

from __future__ import annotations

import json
import pydoc_data.topics
import tempfile
import time
from pathlib import Path

from widgets import opened

import allheads as ah


def main() -> None:
    """One JSON line each."""
    started = time.perf_counter()
    twin = ah.convert(ah.load("smollm2-135m"))
    loading = time.perf_counter() - started
    text = " ".join(text for _, text in sorted(pydoc_data.topics.topics.items()))[:9000]
    ids = twin.to_tokens(text)
    with tempfile.TemporaryDirectory() as folder:
        for length in (64, 1024):
            path = Path(folder) / "attention.html"
            started = time.perf_counter()
            view = ah.plots.attention(twin, ids[:, :length])
            view.save(path)
            row = {"view": "attention", "tokens": length, "build_s": round(time.perf_counter() - started, 2)}
            row |= {"MB": round(path.stat().st_size / 1e6, 2), "error": view.data["error"]}
            print(json.dumps(row | opened("allheads", path, None)), flush=True)
        path = Path(folder) / "explore.html"
        started = time.perf_counter()
        ah.plots.explore(twin, ids[:, :64]).save(path)
        row = {"view": "explore", "tokens": 64, "build_s": round(time.perf_counter() - started, 2)}
        row |= {"load_and_convert_s": round(loading, 2), "MB": round(path.stat().st_size / 1e6, 2)}
        print(json.dumps(row | opened("allheads", path, None)), flush=True)


if __name__ == "__main__":
    main()
