"""Python's documentation as bytes."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from allheads_labs.kit.text import documentation

D_VOCAB = 128
#: The last part of the text is held out.
HELD_OUT = 0.1


@cache
def byte_tokens() -> tuple[Tensor, Tensor]:
    """Token ids of the training and of the held-out text; a byte beyond ASCII is a question mark.

    >>> train, held_out = byte_tokens()
    >>> int(train.max()) < D_VOCAB, len(train) > 8 * len(held_out)
    (True, True)
    """
    tokens = torch.tensor(list("\n".join(documentation()).encode("ascii", "replace")))
    split = int(len(tokens) * (1 - HELD_OUT))
    return tokens[:split], tokens[split:]


def batch(tokens: Tensor, size: int, length: int, draw: torch.Generator) -> Tensor:
    """Random windows ``[batch pos + 1]``.

    >>> batch(torch.arange(10), 3, 4, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 5])
    """
    starts = torch.randint(len(tokens) - length, (size,), generator=draw)
    return tokens[starts[:, None] + torch.arange(length + 1)]
