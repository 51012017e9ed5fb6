r"""Patterns as few bytes: whole 255ths, the smallest left out, compressed.

One block is a pattern ``[row column]`` by rows: how many weights each row keeps, their columns, their levels. Numbers
above 255 are two planes, low bytes first: neighbours are then alike, and deflate finds that. The browser inflates it.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: No shown weight is further from its own value.
MOST_ERROR = 0.005
#: Patterns of more weights leave out those below `MOST_ERROR`; smaller ones only what rounds to nothing.
WHOLE = 128 * 128


@dataclass(frozen=True)
class Block:
    """A packed pattern, its shape, and the largest difference between a weight and what is shown of it."""

    text: str
    rows: int
    columns: int
    error: float


def deflated(weights: Float[Tensor, "row column"]) -> str:
    """Levels of weights in [0, 1], all of them, row by row."""
    levels = _levels(weights.float().cpu())
    return base64.b64encode(zlib.compress(levels.tobytes())).decode()


def _levels(weights: Tensor) -> np.ndarray:
    """The nearest whole 255th of each weight."""
    return (weights * 255).round_().clamp_(0, 255).to(torch.uint8).numpy()


def pack(pattern: Float[Tensor, "row column"]) -> Block:
    """Weights in [0, 1] as levels of 1/255, ``error`` at most 0.005. Those outside are shown as 0 or 1.

    >>> import torch
    >>> unpack(pack(torch.tensor([[0.0, 1.0], [0.25, 0.75]]))).tolist()
    [[0, 255], [64, 191]]
    """
    kept = pattern.detach().float().cpu()
    weights, levels = kept.numpy(), _levels(kept)
    if weights.size > WHOLE:
        levels *= weights >= MOST_ERROR
    rows, columns = np.divmod(np.flatnonzero(levels), weights.shape[1])
    counts = np.bincount(rows, minlength=len(levels))
    planes = [counts & 255, counts >> 8, columns & 255, columns >> 8]
    raw = b"".join(plane.astype(np.uint8).tobytes() for plane in planes) + levels[rows, columns].tobytes()
    error = float(np.abs(levels / np.float32(255) - weights).max(initial=0.0))
    return Block(base64.b64encode(zlib.compress(raw)).decode(), levels.shape[0], levels.shape[1], error)


def unpack(block: Block) -> np.ndarray:
    """The levels ``[row column]``, as the page's script finds them."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(block.text)), np.uint8).astype(np.int64)
    low, high, rest = np.split(raw, [block.rows, 2 * block.rows])
    first, second, shown = np.split(rest, 3)
    levels = np.zeros((block.rows, block.columns), np.uint8)
    levels[np.repeat(np.arange(block.rows), low + 256 * high), first + 256 * second] = shown
    return levels
