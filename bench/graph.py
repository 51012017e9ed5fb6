"""A graph of 500 nodes on 14 tokens: its cost in attributions, and how its predictions hold, as JSON. 2 threads.

Cost is processor time, interleaved with attributions in the same run, the least of three.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import torch

import allheads as ah

PROMPT, PAIR = "When Mary and John went to the store, John gave a drink to", (" Mary", " John")
NODES, TRIED, ROUNDS = 500, 500, 3


def main() -> None:
    torch.set_num_threads(2)
    result: dict[str, Any] = {"nodes": NODES}
    for dtype in (torch.float32, torch.float64):
        twin = ah.convert(ah.load(dtype=dtype))
        for rule in ("value", "half", "live", "relp"):
            seconds: dict[str, float] = {"graph": math.inf, "attribution": math.inf}
            for _ in range(ROUNDS):
                started = time.process_time()
                ah.attribute(twin, PROMPT, PAIR, rule=rule)
                between = time.process_time()
                found = ah.graph(twin, PROMPT, PAIR, rule=rule, budget=NODES)
                seconds["attribution"] = min(seconds["attribution"], between - started)
                seconds["graph"] = min(seconds["graph"], time.process_time() - between)
            facts: dict[str, Any] = {"attributions": round(seconds["graph"] / seconds["attribution"], 1)}
            facts |= {"processor_seconds": round(seconds["graph"], 1), "edges": len(found.edges)}
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
