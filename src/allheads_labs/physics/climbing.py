r"""Does a head move a token along the gradient of its potential, and how much of what it writes follows from it?

`climbing` takes the angle between what a head writes and the gradient. `explained` asks for more: the gradient, as the
query meets it, is the mean key in d_head coordinates; the write is the mean value in as many. Both are averages over
the same pattern. Three predictions of the write, and the share of its variance that they explain on unseen text:

    M         what `allheads_labs.physics.memory` says: nothing is fitted; rotary is not in it
    gradient  the best linear map from the gradient
    chance    the best linear map from as many random directions of the same mean input

If keys were the coordinates in which a head's knowledge is written, the second would beat the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads import TwinBridge
from allheads.progress import bar
from allheads.twin.capture import captured
from allheads.weights import Norm, read_attention, read_wiring
from allheads_labs.physics.fields import HeadField
from allheads_labs.physics.memories import memories
from allheads_labs.physics.potentials import potentials

#: Part of the mean square of the features by which a fit is shrunk.
_RIDGE = 1e-2


@dataclass(frozen=True)
class Climb:
    """Mean cosines between writes and gradients: of the token itself with ``held`` keys, with its own key moving along
    (``whole``), and of other tokens of the prompt.
    """

    held: Float[Tensor, "prompt layer head"]
    whole: Float[Tensor, "prompt layer head"]
    other: Float[Tensor, "prompt seed layer head"]


@dataclass(frozen=True)
class Explained:
    """Shares of the variance of what every head writes; below 0 where the mean would do better."""

    memory: Float[Tensor, "layer head"]
    gradient: Float[Tensor, "layer head"]
    chance: Float[Tensor, "seed layer head"]


def climbing(twin: TwinBridge, prompts: Int[Tensor, "prompt pos"], layers: Sequence[int], seeds: int) -> Climb:
    """The mean cosine between what every head writes at a token and the gradient of its potential there.

    The gradient is taken in the stream, through the norm. 1 would be motion uphill, -1 downhill, 0 has nothing to do
    with it. The first token is left out: it sees itself only.

    Raises `AllHeadsError` as `allheads_labs.physics.potential` does.
    """
    wiring, weights = read_wiring(twin), {layer: read_attention(twin, layer).W_O for layer in layers}
    labels = [(layer, head) for layer in layers for head in range(len(weights[layer]))]
    names = [f"blocks.{layer}.{name}" for layer in layers for name in ("hook_resid_pre", "attn.hook_z")]
    draws = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    orders = [torch.randperm(prompts.shape[1] - 1, generator=draw) for draw in draws]
    means = []
    for ids in bar("Climbing", prompts):
        activations = captured(twin, ids[None], names)
        fields = potentials(twin, ids[None], [f"L{layer}.A{head}" for layer, head in labels])
        for potential, (layer, head) in zip(fields, labels, strict=True):
            stream, z = (activations[f"blocks.{layer}.{name}"][0] for name in ("hook_resid_pre", "attn.hook_z"))
            stream, gradients = stream.to(potential.x), (potential.gradient, potential.gradient + potential.own)
            uphill, whole = (through(wiring.attention_branch(layer).before, stream, g)[1:] for g in gradients)
            W_O = weights[layer]
            write = z.to(potential.x).reshape(len(z), len(W_O), -1)[1:, head] @ W_O[head].to(potential.x)
            directions = [uphill, whole, *(uphill[order] for order in orders)]
            means.append(torch.stack([torch.cosine_similarity(write, row, dim=-1).mean() for row in directions]))
    cosines = torch.stack(means).reshape(len(prompts), len(layers), -1, 2 + seeds)
    return Climb(cosines[..., 0], cosines[..., 1], cosines[..., 2:].movedim(-1, 1))


def through(norm: Norm | None, stream: Float[Tensor, "pos d_model"], gradient: Tensor) -> Float[Tensor, "pos d_model"]:
    """A gradient in what a norm gives, as one in the stream it reads.

    >>> norm = Norm(torch.ones(2), torch.zeros(2), centred=False, slack=1.0)
    >>> through(norm, torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 1.0]])).mul(2**0.5).round(decimals=3).tolist()
    [[0.0, 1.0]]
    """
    if norm is None:
        return gradient
    with torch.enable_grad():
        stream = stream.clone().requires_grad_()
        return torch.autograd.grad(norm(stream), stream, gradient)[0]


@torch.no_grad()
def explained(twin: TwinBridge, ids: Int[Tensor, "window pos"], layers: Sequence[int], seeds: int) -> Explained:
    """The three shares for every head of some layers.

    Even windows are predicted from odd ones, and the other way round; the first token of a window is left out. Raises
    `AllHeadsError` as `allheads_labs.physics.memory` does.
    """
    names = [f"blocks.{layer}.attn.hook_{name}" for layer in layers for name in ("in", "pattern", "z")]
    windows = [captured(twin, window[None], names) for window in ids]
    draw, known = torch.Generator().manual_seed(0), memories(twin, layers)
    shares: list[list[Tensor]] = []
    for layer in bar("Explained", layers):
        attn = f"blocks.{layer}.attn"
        x, patterns, z = (
            torch.cat([window[f"{attn}.hook_{name}"] for window in windows]).float() for name in ("in", "pattern", "z")
        )
        weights = read_attention(twin, layer)
        n_heads, d_head = weights.W_O.shape[:2]
        z = z.reshape(*z.shape[:2], n_heads, d_head)
        directions = torch.randn(seeds, x.shape[-1], d_head, generator=draw)
        for head, W_O in enumerate(weights.W_O.float()):
            pattern = patterns[:, head]
            field, mean_x = HeadField.of(weights, head, x, pattern > 0), pattern @ x
            # The write has the same norms in d_head coordinates.
            write, small = z[:, :, head] @ W_O, z[:, :, head] @ torch.linalg.qr(W_O.T).R.T
            predicted = next(known).write(field.pull(pattern)).float()
            chance = torch.stack([share_of_variance(mean_x @ random, small) for random in directions])
            gradient = share_of_variance(field.mean_key(pattern), small)
            shares.append([_share(write[:, 1:], predicted[:, 1:]), gradient, chance])
    shape = (len(layers), -1)
    memory, gradient, chance = (torch.stack(column, -1) for column in zip(*shares, strict=True))
    return Explained(memory.reshape(shape), gradient.reshape(shape), chance.reshape(seeds, *shape))


def share_of_variance(X: Float[Tensor, "window pos feature"], Y: Float[Tensor, "window pos out"]) -> Float[Tensor, ""]:
    """The share of the variance of Y that a linear map of X explains, windows by turns from each other."""
    halves = [[rows[start::2, 1:].flatten(0, 1).double() for rows in (X, Y)] for start in (0, 1)]
    shares = []
    for (known_x, known_y), (new_x, new_y) in (halves, halves[::-1]):
        mean_x, mean_y = known_x.mean(0), known_y.mean(0)
        G = (known_x - mean_x).T @ (known_x - mean_x)
        G = G + _RIDGE * G.diagonal().mean() * torch.eye(len(G), dtype=G.dtype)
        W = torch.linalg.solve(G, (known_x - mean_x).T @ (known_y - mean_y))
        shares.append(_share(new_y, (new_x - mean_x) @ W + mean_y))
    return torch.stack(shares).mean()


def _share(written: Tensor, predicted: Tensor) -> Float[Tensor, ""]:
    rows = written.flatten(0, -2)
    return (1 - (written - predicted).square().sum() / (rows - rows.mean(0)).square().sum()).float()
