"""Composition of every pair of SmolLM2-135M, by kind, and circuits of a head and a neuron, as JSON. One thread.

Each in a process of its own: seconds, and the peak of resident memory beyond the model's. Kinds may be named as
arguments; ``averaged`` in front of one takes the scores over 64 offsets.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import torch
from resident import Peak, resident

import allheads as ah
from allheads.weights.compositions import KINDS

ALL = (*KINDS, "averaged neuron->Q", "L3.N812", "L3.A5")


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--alone":
        print(json.dumps(_measured(sys.argv[2])))
        return
    names = sys.argv[1:] or ALL
    print(json.dumps({name: _alone(name) for name in names}, indent=2))


def _measured(name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    twin = ah.convert(ah.load())
    before, started, worked = resident(), time.perf_counter(), time.process_time()
    with Peak() as peak:
        found = _run(twin, name)
    result: dict[str, Any] = {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - worked, 1),
        "peak_gigabytes_beyond_the_model": round((peak.bytes - before) / 1e9, 3),
    }
    if isinstance(found, ah.weights.Composition):
        first = found.pairs[0]
        result |= {
            "pairs": found.count,
            "chance_ratio": round(found.chance_ratio, 3),
            "mean_excess": round(float(found.by_layer.nanmean()), 5),
            "first": [first.writer, first.reader, round(first.score, 3), round(first.baseline, 3), first.sign],
        }
    return result


def _run(twin: Any, name: str) -> Any:
    if "->" not in name:
        circuit = ah.weights.circuit(twin, name)
        circuit.to_dataframe()
        return circuit
    offsets = range(64) if name.startswith("averaged") else (0,)
    return ah.weights.composition(twin, name.removeprefix("averaged "), offsets=offsets)


def _alone(name: str) -> dict[str, Any]:
    found = subprocess.run([sys.executable, __file__, "--alone", name], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


if __name__ == "__main__":
    main()
