"""What a training step costs by length: steps that must wait for each other, arithmetic, and seconds on this machine.

The forward pass of a layer of self-attention is six products, each of which waits for the one before: queries, keys and
values; scores; weighted values; output; and two of the MLP. Their number does not depend on the length. A recurrent net
waits for its last state at every token. Backward takes as many again for both.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional as F

from allheads_labs.recurrence.learners import D_MODEL, HIDDEN, Kind, Learner
from allheads_labs.recurrence.task import VALUES, recall

LENGTHS = (64, 128, 256, 512, 1024, 2048)
ROWS, REPEATS, LAYERS = 8, 3, 2


def sequential_steps(kind: Kind, length: int) -> int:
    """The longest chain of products of one forward pass, the readout included.

    >>> sequential_steps("transformer", 2048), sequential_steps("lstm", 2048)
    (13, 2049)
    """
    return 6 * LAYERS + 1 if kind == "transformer" else length + 1


def flops(kind: Kind, length: int, rows: int = ROWS) -> int:
    """Multiplications and additions in the matrix products of one training step: three times a forward pass.

    The transformer's scores are counted in full, as plain attention computes them; a kernel that skips what is masked
    does half of that.
    """
    if kind == "transformer":
        layer = 12 * D_MODEL**2 + 2 * length * D_MODEL
        per_token = LAYERS * layer
        readout = VALUES * D_MODEL
    else:
        gates, hidden = (4 if kind == "lstm" else 3), HIDDEN[kind]
        per_token = gates * hidden * (D_MODEL + hidden)
        readout = VALUES * hidden
    return 3 * 2 * rows * (length * per_token + readout)


def seconds(kind: Kind, length: int, repeats: int = REPEATS) -> float:
    """The median wall time of one training step of ``ROWS`` sequences, after one that does not count."""
    learner, draw = Learner(kind, 0), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(learner.trained_parameters())
    taken = []
    for _ in range(1 + repeats):
        # The query is the last of the tokens.
        batch = recall(draw, (ROWS, length - 1), 4)
        started = time.perf_counter()
        loss = F.cross_entropy(learner(batch.tokens)[:, 0], batch.answers[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])
