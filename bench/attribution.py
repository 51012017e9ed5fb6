"""Attribution to every head and neuron against one forward and backward pass of the source, as JSON. 2 threads.

Times are taken in turn in one process; peaks of resident memory each in a process of its own. With ``--complete`` also
the largest completeness error over 50 prompts of 10 to 200 tokens, by rule and dtype: about a quarter of an hour.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from resident import Peak, resident

import allheads as ah

TOKENS, ROUNDS = 128, 7
RULES = ("value", "gate", "half")


def main() -> None:
    torch.set_num_threads(2)
    modes = {"source": _source, **{rule: _rule(rule) for rule in RULES}}
    if len(sys.argv) > 1 and sys.argv[1] in modes:
        print(json.dumps(_peak(modes[sys.argv[1]])))
        return
    source = ah.load()
    twin = ah.convert(source)
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(ROUNDS):
        for name, run in modes.items():
            started = time.perf_counter()
            run(source if run is _source else twin)
            seconds[name].append(time.perf_counter() - started)
    peaks = {name: _alone(name) for name in modes}
    result: dict[str, Any] = {
        "tokens": TOKENS,
        "rounds": ROUNDS,
        "seconds_median": {name: round(statistics.median(row), 3) for name, row in seconds.items()},
        "ratio_to_source": {
            name: round(statistics.median(a / b for a, b in zip(row, seconds["source"], strict=True)), 3)
            for name, row in seconds.items()
        },
        "peak_gigabytes_beyond_the_model": {name: round(peak / 1e9, 3) for name, peak in peaks.items()},
        "peak_ratio": {name: round(peak / peaks["source"], 3) for name, peak in peaks.items()},
    }
    if "--complete" in sys.argv:
        result["completeness"] = {str(dtype): _completeness(dtype) for dtype in (torch.float32, torch.float64)}
    print(json.dumps(result, indent=2))


def _ids(twin: Any) -> torch.Tensor:
    return torch.randint(twin.cfg.d_vocab, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def _source(source: Any) -> None:
    """One forward pass, and one backward pass to the embeddings."""
    leaf = []

    def start(value: torch.Tensor, hook: object) -> torch.Tensor:
        leaf.append(value.detach().requires_grad_())
        return leaf[0]

    with torch.enable_grad(), source.hooks(fwd_hooks=[("embed.hook_out", start)]):
        torch.autograd.grad(source(_ids(source))[0, -1, 5], leaf)


def _rule(rule: str) -> Any:
    return lambda twin: ah.attribute(twin, _ids(twin), 5, rule=rule)


def _peak(run: Any) -> int:
    source = ah.load()
    model = source if run is _source else ah.convert(source)
    before = resident()
    with Peak() as peak:
        run(model)
    return peak.bytes - before


def _alone(name: str) -> int:
    found = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return int(found.stdout)


def _completeness(dtype: torch.dtype) -> dict[str, float]:
    twin = ah.convert(ah.load(dtype=dtype))
    text = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    ids = twin.to_tokens(text[:60000], truncate=False)[0]
    worst = dict.fromkeys(RULES, 0.0)
    for number, length in enumerate(torch.linspace(10, 200, 50).long().tolist()):
        for rule in RULES:
            prompt = ids[number * 200 : number * 200 + length]
            found = ah.attribute(twin, prompt, int(ids[number * 200 + length]), rule=rule)
            worst[rule] = max(worst[rule], found.completeness_error)
    return worst


if __name__ == "__main__":
    main()
