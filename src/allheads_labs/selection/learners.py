"""Four that learn, of equal size: a transformer, the same with frozen attention, a convolution, and a plain network.

All read tokens ``[*batch pos d_token]`` and give a number each. They are made of matrix products only, so that
several can be trained at once, one for each number of sequences (`allheads_labs.selection.training`).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge

from allheads_labs.kit.small_models import as_bridge, decoder

Kind = Literal["transformer", "uniform", "convolution", "connected"]
KINDS: tuple[Kind, ...] = ("transformer", "uniform", "convolution", "connected")
D_MODEL, HEADS = 32, 4
#: Tokens that one layer of the convolution sees, and its channels.
WINDOW, CHANNELS = 5, 32
#: What the plain network's width makes its parameters, about those of the transformer.
SIZE = 15_300


class Embedding(nn.Module):
    """Each token by itself: a hidden layer, told of the position where positions mean something."""

    def __init__(self, d_token: int, size: int, places: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(d_token, 2 * size), nn.Linear(2 * size, size)
        self.places = nn.Parameter(0.5 * torch.randn(places, 2 * size)) if places else None

    def forward(self, tokens: Float[Tensor, "*batch pos d_token"]) -> Float[Tensor, "*batch pos size"]:
        """What the body reads."""
        hidden = self.inner(tokens)
        return self.outer(F.silu(hidden if self.places is None else hidden + self.places))


class AttentionBlock(nn.Module):
    """One block of a transformer, read at a token of its own at the end; ``frozen`` attention looks everywhere alike.

    Only what the reading token needs is computed; `bridge` is the whole block with the same weights.
    """

    def __init__(self, d_token: int, places: int, *, frozen: bool = False) -> None:
        super().__init__()
        d = D_MODEL
        self.frozen = frozen
        self.embed, self.reader = Embedding(d_token, d, places), nn.Parameter(0.1 * torch.randn(1, d))
        self.ln_1, self.attn, self.attn_out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ln_2, self.mlp, self.mlp_out = nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.ln_f, self.readout = nn.LayerNorm(d), nn.Linear(d, 1, bias=False)

    def embedded(self, tokens: Float[Tensor, "*batch pos d_token"]) -> Float[Tensor, "*batch more d_model"]:
        """What the block reads: the tokens, then the reader."""
        embedded = self.embed(tokens)
        return torch.cat([embedded, self.reader.expand(*embedded.shape[:-2], 1, -1)], -2)

    def with_pattern(self, tokens: Float[Tensor, "*batch pos d_token"]) -> tuple[Tensor, Tensor]:
        """The numbers, and the pattern of the reading token ``[*batch head more]``; its last column is itself."""
        stream = self.embedded(tokens)
        queries, keys, values = self.attn(self.ln_1(stream)).chunk(3, -1)
        keys, values = (rows.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for rows in (keys, values))
        query = queries[..., -1, :].unflatten(-1, (HEADS, 1, -1))
        scores = (query @ keys.mT) / math.sqrt(D_MODEL / HEADS)
        pattern = torch.zeros_like(scores).softmax(-1) if self.frozen else scores.softmax(-1)
        read = stream[..., -1, :] + self.attn_out((pattern @ values).flatten(-3))
        read = read + self.mlp_out(F.silu(self.mlp(self.ln_2(read))))
        return self.readout(self.ln_f(read))[..., 0], pattern[..., 0, :]

    def forward(self, tokens: Float[Tensor, "*batch pos d_token"]) -> Float[Tensor, "*batch"]:
        """The numbers."""
        return self.with_pattern(tokens)[0]

    @torch.no_grad()
    def bridge(self, tokens: Float[Tensor, "batch pos d_token"]) -> tuple[TransformerBridge, Tensor]:
        """As a network that reads ids, and the ids of these tokens: its vocabulary is their vectors.

        Its first logit, at the last position, is the number. A twin of frozen attention would not be frozen.
        """
        stream = self.embedded(tokens)
        ids = torch.arange(stream[..., 0].numel()).view(stream.shape[:-1])
        body: Any = decoder(ids.numel(), stream.shape[-2], d_model=D_MODEL, n_heads=HEADS, n_layers=1)
        block = body.transformer.h[0]
        body.transformer.wte.weight.copy_(stream.flatten(0, -2))
        body.lm_head.weight.zero_()[0] = self.readout.weight[0]
        products = (
            (self.attn, block.attn.c_attn),
            (self.attn_out, block.attn.c_proj),
            (self.mlp, block.mlp.c_fc),
            (self.mlp_out, block.mlp.c_proj),
        )
        for ours, theirs in products:
            theirs.weight.copy_(ours.weight.mT)
            theirs.bias.copy_(ours.bias)
        norms = ((self.ln_1, block.ln_1), (self.ln_2, block.ln_2), (self.ln_f, body.transformer.ln_f))
        for norm, same in norms:
            same.load_state_dict(norm.state_dict())
        return as_bridge(body, "selection"), ids


class Convolution(nn.Module):
    """Two layers with a window each, towards the past; read at the end if positions mean something, else on average."""

    def __init__(self, d_token: int, *, placed: bool) -> None:
        super().__init__()
        self.placed = placed
        self.embed = Embedding(d_token, CHANNELS, 0)
        self.layers = nn.ModuleList(nn.Linear(WINDOW * CHANNELS, CHANNELS) for _ in range(2))
        self.inner, self.readout = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, 1)

    def forward(self, tokens: Float[Tensor, "*batch pos d_token"]) -> Float[Tensor, "*batch"]:
        """The numbers."""
        stream = self.embed(tokens)
        for layer in self.layers:
            padded = F.pad(stream, (0, 0, WINDOW - 1, 0))
            windows = torch.cat([padded[..., at : at + stream.shape[-2], :] for at in range(WINDOW)], -1)
            stream = stream + F.silu(layer(windows))
        read = stream[..., -1, :] if self.placed else stream.mean(-2)
        return self.readout(F.silu(self.inner(read)))[..., 0]


class FullyConnected(nn.Module):
    """Two hidden layers on all tokens in a row."""

    def __init__(self, d_token: int, length: int) -> None:
        super().__init__()
        inputs = d_token * length
        width = round((math.sqrt((inputs + 3) ** 2 + 4 * SIZE) - inputs - 3) / 2)
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, tokens: Float[Tensor, "*batch pos d_token"]) -> Float[Tensor, "*batch"]:
        """The numbers."""
        return self.layers(tokens.flatten(-2))[..., 0]


def learner(kind: Kind, d_token: int, length: int, *, placed: bool) -> nn.Module:
    """An untrained one; ``placed`` if positions mean something, which attention has to be told.

    >>> [sum(p.numel() for p in learner(kind, 5, 11, placed=False).parameters()) for kind in KINDS]
    [15296, 15296, 14945, 15289]
    """
    places = length if placed else 0
    if kind == "convolution":
        return Convolution(d_token, placed=placed)
    if kind == "connected":
        return FullyConnected(d_token, length)
    return AttentionBlock(d_token, places, frozen=kind == "uniform")
