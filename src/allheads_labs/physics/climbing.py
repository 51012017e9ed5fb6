"""Does a head move a token along the gradient of its potential? The angle between what it writes and that gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads import TwinBridge
from allheads.models.attention import read_attention
from allheads.models.norms import Norm
from allheads.progress import bar
from allheads.twin.wiring import read_wiring
from allheads_labs.physics.potentials import potentials


@dataclass(frozen=True)
class Climb:
    """Mean cosines between writes and gradients: of the token itself with ``held`` keys, with its own key moving along
    (``whole``), and of other tokens of the prompt.
    """

    held: Float[Tensor, "prompt layer head"]
    whole: Float[Tensor, "prompt layer head"]
    other: Float[Tensor, "prompt seed layer head"]


def climbing(twin: TwinBridge, prompts: Int[Tensor, "prompt pos"], layers: Sequence[int], seeds: int) -> Climb:
    """The mean cosine between what every head writes at a token and the gradient of its potential there.

    The gradient is taken in the stream, through the norm. 1 would be motion uphill, -1 downhill, 0 has nothing to do
    with it. The first token is left out: it sees itself only.

    Raises `AllHeadsError` as `allheads_labs.physics.potential` does.
    """
    wiring, reads = read_wiring(twin), {layer: read_attention(twin, layer) for layer in layers}
    labels = [(layer, number) for layer in layers for number in range(len(reads[layer].W_O))]
    names = [f"blocks.{layer}.{name}" for layer in layers for name in ("hook_resid_pre", "attn.hook_z")]
    orders = [
        torch.randperm(prompts.shape[1] - 1, generator=torch.Generator().manual_seed(seed)) for seed in range(seeds)
    ]
    found_ones = []
    for ids in bar("Climbing", prompts):
        with torch.no_grad():
            seen = twin.run_with_cache(ids[None], names_filter=names, return_cache_object=False)[1]
        fields = potentials(twin, ids[None], [f"L{layer}.A{number}" for layer, number in labels])
        for found, (layer, number) in zip(fields, labels, strict=True):
            stream, z = (seen[f"blocks.{layer}.{name}"][0].to(found.x) for name in ("hook_resid_pre", "attn.hook_z"))
            before = wiring.attention[layer].before
            uphill, whole = (through(before, stream, g)[1:] for g in (found.gradient, found.gradient + found.own))
            W_O = reads[layer].W_O
            write = z.reshape(len(z), len(W_O), -1)[1:, number] @ W_O[number].to(z)
            rows = [uphill, whole, *(uphill[order] for order in orders)]
            found_ones.append(torch.stack([torch.cosine_similarity(write, row, dim=-1).mean() for row in rows]))
    cosines = torch.stack(found_ones).reshape(len(prompts), len(layers), -1, 2 + seeds)
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
