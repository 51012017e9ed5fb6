r"""How much of what a head writes on text follows from the gradient of its potential, by M and by any linear map.

The gradient, as the query meets it, is the mean key in d_head coordinates; the write is the mean value in as many. Both
are averages over the same pattern. Three predictions of the write, and the share of its variance that they explain on
text that they have not seen:

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
from allheads.models.attention import read_attention
from allheads.progress import bar
from allheads_labs.physics.fields import HeadField
from allheads_labs.physics.memories import memories

#: Part of the mean square of the features by which a fit is shrunk.
_RIDGE = 1e-2


@dataclass(frozen=True)
class Explained:
    """Shares of the variance of what every head writes; below 0 where the mean would do better."""

    memory: Float[Tensor, "layer head"]
    gradient: Float[Tensor, "layer head"]
    chance: Float[Tensor, "seed layer head"]


@torch.no_grad()
def explained(twin: TwinBridge, ids: Int[Tensor, "window pos"], layers: Sequence[int], seeds: int) -> Explained:
    """The three shares for every head of some layers.

    Even windows are predicted from odd ones, and the other way round; the first token of a window is left out. Raises
    `AllHeadsError` as `allheads_labs.physics.memory` does.
    """
    names = [f"blocks.{layer}.attn.hook_{name}" for layer in layers for name in ("in", "pattern", "z")]
    rows = [twin.run_with_cache(row[None], names_filter=names, return_cache_object=False)[1] for row in ids]
    draw = torch.Generator().manual_seed(0)
    found: list[list[Tensor]] = []
    known = memories(twin, layers)
    for layer in bar("Explained", layers):
        x, pattern, z = (
            torch.cat([row[f"blocks.{layer}.attn.hook_{name}"] for row in rows]).float()
            for name in ("in", "pattern", "z")
        )
        read = read_attention(twin, layer)
        n_heads, d_head = read.W_O.shape[:2]
        z = z.reshape(*z.shape[:2], n_heads, d_head)
        directions = torch.randn(seeds, x.shape[-1], d_head, generator=draw)
        for number in range(n_heads):
            field = HeadField.of(read, number, x, pattern[:, number] > 0)
            write = z[:, :, number] @ read.W_O[number].float()
            mean_key, mean_x = field.mean_key(pattern[:, number]), pattern[:, number] @ x
            # The same norms in d_head coordinates.
            small = z[:, :, number] @ torch.linalg.qr(read.W_O[number].float().T).R.T
            said = next(known).write(field.pull(pattern[:, number])).float()
            chance = torch.stack([share_of_variance(mean_x @ each, small) for each in directions])
            found.append([_share(write[:, 1:], said[:, 1:]), share_of_variance(mean_key, small), chance])
    shape = (len(layers), -1)
    one, two, three = (torch.stack([each[i] for each in found], -1) for i in range(3))
    return Explained(one.reshape(shape), two.reshape(shape), three.reshape(seeds, *shape))


def share_of_variance(X: Float[Tensor, "window pos feature"], Y: Float[Tensor, "window pos out"]) -> Float[Tensor, ""]:
    """The share of the variance of Y that a linear map of X explains, windows by turns from each other."""
    sides, even, odd = [], slice(0, None, 2), slice(1, None, 2)
    for train, test in ((even, odd), (odd, even)):
        (a, b), (c, d) = (
            (X[part, 1:].flatten(0, 1).double(), Y[part, 1:].flatten(0, 1).double()) for part in (train, test)
        )
        mean_a, mean_b = a.mean(0), b.mean(0)
        G = (a - mean_a).T @ (a - mean_a)
        G = G + _RIDGE * G.diagonal().mean() * torch.eye(len(G), dtype=G.dtype)
        W = torch.linalg.solve(G, (a - mean_a).T @ (b - mean_b))
        sides.append(_share(d, (c - mean_a) @ W + mean_b))
    return torch.stack(sides).mean()


def _share(true: Tensor, said: Tensor) -> Float[Tensor, ""]:
    flat = true.flatten(0, -2)
    return (1 - (true - said).square().sum() / (flat - flat.mean(0)).square().sum()).float()
