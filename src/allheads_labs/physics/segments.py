r"""segment: the part of the stream's space that a head writes to, and how far segments of heads overlap.

A head writes into the row space of W_O, of dimension d_head; a neuron onto a line. With orthonormal rows A and B of two
segments the singular values of ``A B^T`` are the cosines of their principal angles, and

    overlap = ||A B^T||_F^2 / min(rank)            mean squared cosine: 1 if one lies in the other, 0 if orthogonal

is ``max(rank) / d_model`` on average where one of them is turned at random. Heads own segments if overlaps are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads import AllHeadsError, Label, TwinBridge
from allheads.progress import bar
from allheads.twin.prompt import require_twin
from allheads.weights import read_attention


@torch.no_grad()
def segment(twin: TwinBridge, label: str | Label) -> Float[Tensor, "rank d_model"]:
    """Orthonormal rows that span what a head (``L3.A5``) or a neuron (``L3.N812``) writes, in float64.

    Raises `AllHeadsError` for an unknown label.

    >>> segment(twin, "L3.A5").shape  # doctest: +SKIP
    torch.Size([64, 576])
    """
    return basis(torch.cat([part.W_O for part in require_twin(twin).index.heads(label)]).detach().double())


def basis(W_O: Float[Tensor, "*head d_head d_model"]) -> Float[Tensor, "*head d_head d_model"]:
    """Orthonormal rows with the same span; the rows of several parts of a neuron are one line."""
    _, sizes, V = torch.linalg.svd(W_O, full_matrices=False)
    kept = sizes > 1e-6 * sizes[..., :1]
    return V[kept] if V.ndim == 2 else V * kept[..., None]


def angles(
    first: Float[Tensor, "*pair rank d_model"], second: Float[Tensor, "*pair other d_model"]
) -> Float[Tensor, "*pair least"]:
    """Cosines of the principal angles between two segments, largest first.

    >>> eye = torch.eye(4)
    >>> angles(eye[:2], eye[1:3]).tolist()
    [1.0, 0.0]
    """
    return torch.linalg.svdvals(first @ second.mT).clamp(max=1.0)


@dataclass(frozen=True)
class Overlaps:
    """Of all ordinary heads: ``mean`` squared cosine and ``largest`` cosine for every pair, 1 with themselves."""

    layers: tuple[int, ...]
    heads: int
    chance: float
    mean: Float[Tensor, "head head"]
    largest: Float[Tensor, "head head"]

    def label(self, index: int) -> str:
        """The head of a row."""
        return f"L{self.layers[index // self.heads]}.A{index % self.heads}"

    def pairs(self, apart: int) -> Float[Tensor, " pair"]:
        """Mean squared cosines of the pairs whose layers are that far apart; within a layer each pair once."""
        layer = torch.tensor(self.layers).repeat_interleave(self.heads)
        return self.mean[((layer - layer[:, None]) == apart) & torch.ones_like(self.mean, dtype=torch.bool).triu(1)]


@torch.no_grad()
def overlaps(twin: TwinBridge, layers: Sequence[int] | None = None) -> Overlaps:
    """Overlaps of the segments of all ordinary heads, of all layers if None.

    Raises `AllHeadsError` for networks of several stacks, and layers that do not exist.

    >>> overlaps(twin).pairs(apart=0).mean()  # doctest: +SKIP
    """
    chosen = chosen_layers(twin, layers)
    spans = torch.stack([basis(read_attention(twin, layer).W_O.float()) for layer in chosen])
    n_heads, d_head, d_model = spans.shape[1:]
    mean, largest = (torch.ones(len(chosen) * n_heads, len(chosen) * n_heads) for _ in range(2))
    for a in bar("Overlaps", range(len(chosen))):
        rows, rest = slice(a * n_heads, (a + 1) * n_heads), slice(a * n_heads, None)
        # This layer and later ones: the table is symmetric.
        cosines = angles(spans[a, :, None], spans[a:].flatten(0, 1))
        for table, block in ((mean, cosines.square().mean(-1)), (largest, cosines[..., 0])):
            table[rows, rest], table[rest, rows] = block, block.T
    return Overlaps(tuple(chosen), n_heads, d_head / d_model, mean, largest)


def chosen_layers(twin: TwinBridge, layers: Sequence[int] | None) -> list[int]:
    """Layers of a twin with one stack, all if None; raises `AllHeadsError` for others."""
    twin.require_one_stack("compare what its heads write")
    every = range(len(twin.banks))
    chosen = list(every if layers is None else layers)
    if not chosen or any(layer not in every for layer in chosen):
        raise AllHeadsError(f"layers from 0 to {every[-1]}", repr(layers), "Layers count from 0.")
    return chosen


def random_segments(count: int, rank: int, d_model: int, seed: int) -> Float[Tensor, "count rank d_model"]:
    """Segments that know nothing of each other, uniform over all of their rank."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, d_model, rank, generator=draw, dtype=torch.float64)).Q.mT
