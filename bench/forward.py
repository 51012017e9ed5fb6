"""Forward time of the twin over that of its source, for each evaluation; share of the matrix-product peak.

Prints one JSON object. Ratios are medians of interleaved rounds in one process; 2 threads.
"""

from __future__ import annotations

import json
import statistics
from functools import partial

import torch
from pairs import interleaved, median_ratio

import allheads as ah

THREADS = 2
ROUNDS = 9
LENGTHS = (128, 512)


def main() -> None:
    torch.set_num_threads(THREADS)
    source = ah.load()
    twin = ah.convert(source)
    result: dict[str, object] = {"model": source.cfg.model_name, "threads": THREADS, "torch": torch.__version__}
    for length in LENGTHS:
        tokens = torch.randint(source.cfg.d_vocab, (1, length), generator=torch.Generator().manual_seed(0))
        runs = {"source": partial(_forward, source, tokens)}
        runs |= {name: partial(_evaluated, twin, tokens, name) for name in ("closed", "slots")}
        row = _compared(runs, ROUNDS)
        peak, work = _peak(), _operations(source, length)
        row["share_of_matmul_peak"] = {
            name: round(work / row["seconds_median"][name] / peak, 3) for name in ("source", "closed")
        }
        if length == min(LENGTHS):  # literal attention is the referee: every head over every position, quadratic
            runs = {"source": runs["source"], "attention": partial(_evaluated, twin, tokens, "attention")}
            row["attention"] = _compared(runs, rounds=3)
        result[f"1x{length}"] = row
    print(json.dumps(result, indent=2))


def _compared(runs, rounds: int) -> dict:
    seconds = interleaved(runs, rounds)
    return {
        "rounds": rounds,
        "seconds_median": {name: round(statistics.median(s), 4) for name, s in seconds.items()},
        "ratio_to_source": {
            name: round(median_ratio(seconds, name, "source"), 3) for name in seconds if name != "source"
        },
    }


@torch.no_grad()
def _forward(model, tokens):
    return model(tokens)


@torch.no_grad()
def _evaluated(twin, tokens, evaluation):
    with twin.evaluated(evaluation):
        return twin(tokens)


def _operations(source, length: int) -> float:
    """Multiply-adds of all weight matrices and of the attention, times two."""
    body = sum(p.numel() for p in source.original_model.parameters())
    attention = 2 * source.cfg.n_layers * length * source.cfg.d_model
    return 2.0 * length * (body + attention)


def _peak() -> float:
    """Operations per second of a large square float32 matrix product."""
    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = interleaved({"matmul": lambda: a @ b}, ROUNDS)["matmul"]
    return 2.0 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
