r"""Weights and gates as few bytes: whole 255ths, the smallest left out, compressed.

A packed matrix ``[row column]`` is its two sizes, how many weights each row keeps, their columns, and their levels.
Counts and columns are two planes, low bytes first: neighbours are then alike, and deflate finds that. `unpack` in
``web/base.js`` is the inverse in the browser.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

#: No shown weight is further from its true value.
MOST_ERROR = 0.005
#: Matrices of more weights leave out those below `MOST_ERROR`; smaller ones only what rounds to nothing.
WHOLE = 128 * 128


def pack(weights: Float[Tensor, "row column"]) -> tuple[str, float]:
    """Weights in [0, 1] as levels of 1/255 in base64, and the largest error, at most 0.005.

    Weights outside [0, 1] are shown as 0 or 1.

    >>> import torch
    >>> text, error = pack(torch.tensor([[0.0, 1.0], [0.25, 0.75]]))
    >>> unpack(text).tolist()
    [[0, 255], [64, 191]]
    """
    values = weights.detach().float().cpu()
    levels = (values * 255).round_().clamp_(0, 255).to(torch.uint8).numpy()
    if levels.size > WHOLE:
        levels *= values.numpy() >= MOST_ERROR
    rows, columns = np.divmod(np.flatnonzero(levels), levels.shape[1])
    counts = np.bincount(rows, minlength=len(levels))
    planes = [counts & 255, counts >> 8, columns & 255, columns >> 8, levels[rows, columns]]
    raw = np.array(levels.shape, "<u4").tobytes() + b"".join(plane.astype(np.uint8).tobytes() for plane in planes)
    error = float(np.abs(levels / np.float32(255) - values.numpy()).max(initial=0.0))
    return base64.b64encode(zlib.compress(raw)).decode(), error


def unpack(text: str) -> UInt8[np.ndarray, "row column"]:
    """The levels, as the page's script finds them."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    levels = np.zeros(raw[:8].view("<u4"), np.uint8)
    low_counts, high_counts, kept = np.split(raw[8:].astype(np.int64), [len(levels), 2 * len(levels)])
    low_columns, high_columns, shown = np.split(kept, 3)
    rows = np.repeat(np.arange(len(levels)), low_counts + 256 * high_counts)
    levels[rows, low_columns + 256 * high_columns] = shown
    return levels


def short(value: float, digits: int = 4) -> float:
    """A number to a few significant digits, for JSON.

    >>> short(0.123456)
    0.1235
    """
    return float(f"{value:.{digits}g}")
