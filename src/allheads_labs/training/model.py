"""A small language model on bytes whose hidden layers are MLPs, tied heads or untied heads, and its text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allheads_labs.kit.fitting import seeded
from allheads_labs.kit.text import documentation
from allheads_labs.training.hidden_layers import MLP, Dropout, Form, HiddenHeads, hidden_layer

D_VOCAB = 128
#: The last part of the text is held out.
HELD_OUT = 0.1
CONTEXT, D_MODEL, N_HEADS, D_MLP, N_LAYERS = 64, 64, 4, 256, 2
#: Of dropout.
RATE = 0.1


class Block(nn.Module):
    """Pre-norm attention and a hidden layer."""

    def __init__(self, hidden: MLP | HiddenHeads) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)
        self.qkv, self.out = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False), nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.hidden = hidden

    def mid(self, x: Tensor) -> Tensor:
        """The stream after attention."""
        q, k, v = (t.unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for t in self.qkv(self.ln1(x)).chunk(3, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(z.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        """The stream after the block."""
        mid = self.mid(x)
        return mid + self.hidden(self.ln2(mid))


class ByteTransformer(nn.Module):
    """A small language model on bytes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.embed = nn.Embedding(D_VOCAB, D_MODEL)
            self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, D_MODEL))
            self.blocks = nn.ModuleList(Block(_start()) for _ in range(N_LAYERS))
            self.ln_final, self.unembed = nn.LayerNorm(D_MODEL), nn.Linear(D_MODEL, D_VOCAB, bias=False)

    def with_hidden(self, form: Form, dropout: Dropout, rate: float = RATE) -> ByteTransformer:
        """Turn the hidden layers into another form, with the same weights."""
        for block in self.blocks:
            start: Any = block.hidden
            block.hidden = hidden_layer(form, start, dropout, rate)
        return self

    def stream(self, tokens: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Every block with the stream it reads, and None with the last one."""
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            yield block, x
            x = block(x)
        yield None, x

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        *_, (_, x) = self.stream(windows[:, :-1])
        return F.cross_entropy(self.unembed(self.ln_final(x)).flatten(0, 1), windows[:, 1:].flatten())


def _start() -> MLP:
    W_in, W_out = torch.randn(D_MODEL, D_MLP) / D_MODEL**0.5, torch.randn(D_MLP, D_MODEL) / D_MLP**0.5
    return MLP(W_in, torch.zeros(D_MLP), W_out, torch.zeros(D_MODEL))


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
