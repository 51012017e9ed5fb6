"""A bank of heads against the obvious way: one dense (N + 1) x (N + 1) pattern per neuron, in Python loops.

The baseline is numpy in the manner of the paper's definitions: every neuron is a head with matrices W_QK and W_OV over
an augmented stream whose last row is the bias token, and a mask; the softmax goes row by row, or (``dense_rows``) takes
all rows at once. Same float64 answers, printed as JSON with the ratios.
"""

from __future__ import annotations

import json
import os
import statistics

# A second thread only slows such small products down, and spins into the next measurement.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from pairs import interleaved, median_ratio

import allheads as ah
from allheads.heads.bank import HeadBank

TOKENS, D_MODEL, NEURONS, ROUNDS = 64, 64, 256, 9


def main() -> None:
    torch.set_num_threads(2)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(TOKENS, D_MODEL))
    W_in, W_out = draw.normal(size=(D_MODEL, NEURONS)) / 8, draw.normal(size=(NEURONS, D_MODEL))
    tensors = {"W_in": torch.from_numpy(W_in), "W_out": torch.from_numpy(W_out)}
    banks = {name: HeadBank(tensors, ah.gates.approximate("silu"), name) for name in ("slots", "closed", "attention")}
    stream = torch.from_numpy(x)[None]
    runs = {
        "dense": lambda: dense(x, W_in, W_out, row_by_row),
        "dense_rows": lambda: dense(x, W_in, W_out, rows_at_once),
    }
    runs |= {name: lambda bank=bank: bank(stream)[0].numpy() for name, bank in banks.items()}
    with torch.no_grad():
        answers = {name: run() for name, run in runs.items()}
        seconds = interleaved(runs, ROUNDS)
    result = {
        "tokens": TOKENS,
        "d_model": D_MODEL,
        "neurons": NEURONS,
        "seconds_median": {name: round(statistics.median(s), 6) for name, s in seconds.items()},
        "times_faster_than_dense": {name: round(median_ratio(seconds, "dense", name), 1) for name in banks},
        "times_faster_than_dense_rows": {name: round(median_ratio(seconds, "dense_rows", name), 1) for name in banks},
        "largest_difference": {
            name: float(np.abs(answer - answers["dense"]).max()) for name, answer in answers.items() if name != "dense"
        },
    }
    print(json.dumps(result, indent=2))


def row_by_row(scores: np.ndarray) -> np.ndarray:
    """The softmax of every row, in a loop."""
    pattern = np.zeros_like(scores)
    for number, row in enumerate(scores):
        weights = np.exp(row - row.max())
        pattern[number] = weights / weights.sum()
    return pattern


def rows_at_once(scores: np.ndarray) -> np.ndarray:
    """The softmax of all rows."""
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def dense(x: np.ndarray, W_in: np.ndarray, W_out: np.ndarray, softmax) -> np.ndarray:
    """SiLU neurons as masked heads, one after the other."""
    length, d_model = x.shape
    augmented = np.zeros((length + 1, d_model + 1))
    augmented[:length, :d_model] = x
    augmented[length, d_model] = 1.0  # the bias token: nothing but its flag
    mask = np.full((length + 1, length + 1), -np.inf)
    np.fill_diagonal(mask, 0.0)
    mask[:, length] = 0.0
    out = np.zeros((length + 1, d_model + 1))
    for neuron in range(W_in.shape[1]):
        W_QK = np.zeros((d_model + 1, d_model + 1))
        W_QK[:d_model, d_model] = -W_in[:, neuron]
        W_OV = np.zeros((d_model + 1, d_model + 1))
        W_OV[:d_model, :d_model] = np.outer(W_in[:, neuron], W_out[neuron])
        scores = augmented @ W_QK @ augmented.T + mask
        out += softmax(scores) @ augmented @ W_OV
    return out[:length, :d_model]


if __name__ == "__main__":
    main()
