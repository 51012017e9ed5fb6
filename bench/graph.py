"""A graph of 500 nodes on a 14-token prompt: seconds, and how its predictions hold, as JSON. 2 threads."""

from __future__ import annotations

import json
import time
from typing import Any

import torch

import allheads as ah

PROMPT, PAIR = "When Mary and John went to the store, John gave a drink to", (" Mary", " John")
NODES, TRIED = 500, 500


def main() -> None:
    torch.set_num_threads(2)
    result: dict[str, Any] = {"nodes": NODES}
    for dtype in (torch.float32, torch.float64):
        twin = ah.convert(ah.load(dtype=dtype))
        for rule in ("value", "half", "live", "relp"):
            started = time.perf_counter()
            found = ah.graph(twin, PROMPT, PAIR, rule=rule, budget=NODES)
            seconds = time.perf_counter() - started
            facts: dict[str, Any] = {"seconds": round(seconds, 1), "edges": len(found.edges)}
            facts["coverage"] = round(found.coverage, 3)
            confirmed = found.confirm(TRIED)
            if confirmed.frozen is not None:
                facts["held_relative_error"] = f"{confirmed.frozen_error:.1e}"
                gap = (confirmed.frozen - confirmed.predicted).abs().max() / confirmed.predicted.abs().max()
                facts["held_error_of_the_largest"] = f"{float(gap):.1e}"
            facts |= {
                "live_correlation": round(confirmed.correlation, 3),
                "live_slope": round(confirmed.slope, 3),
                "live_signs": round(confirmed.signs, 3),
            }
            result[f"{rule} {dtype}".replace("torch.", "")] = facts
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
