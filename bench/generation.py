"""Greedy generation with SmolLM2 and its twin, with and without a cache: the same 64 tokens on five prompts?"""

from __future__ import annotations

import json
import time

import torch

import allheads as ah

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at a lower temperature on mountains because",
    "Dear Sir or Madam,",
)
TOKENS = 64


def main() -> None:
    torch.set_num_threads(2)
    source = ah.load()
    twin = ah.convert(source)
    rows = []
    for prompt in PROMPTS:
        ids = source.to_tokens(prompt)
        row: dict[str, object] = {"prompt": prompt}
        expected = _write(source, ids, True)
        for name, use_cache in (("cached", True), ("uncached", False)):
            started = time.perf_counter()
            with twin.evaluated("slots"):
                row[name] = torch.equal(_write(twin, ids, use_cache), expected)
            row[f"{name}_s"] = round(time.perf_counter() - started, 1)
        row["source_uncached"] = torch.equal(_write(source, ids, False), expected)
        rows.append(row)
    print(json.dumps({"tokens": TOKENS, "identical": all(r["cached"] and r["uncached"] for r in rows), "rows": rows}))


def _write(model: object, ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "use_cache": use_cache}
    with torch.no_grad():
        return model.original_model.generate(ids, **options)


if __name__ == "__main__":
    main()
