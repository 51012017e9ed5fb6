"""What a head may be looking at: for each role, the sources that count, as a mask over destinations and sources.

For tokens x and a destination q > 0, the sources k <= q that count are

    previous     k = q - 1
    self         k = q
    first        k = 0
    duplicate    k < q with x[k] = x[q]
    induction    0 < k <= q with x[k - 1] = x[q]

A head's score in a role is the attention that it gives to these sources, averaged over the destinations that have one:
``sum(pattern * mask) / #{q : some mask[q, k]}``, in [0, 1]. The first destination is left out: it can only look at
itself. Source: Elhage et al. 2021 and Olsson et al. 2022; `transformer_lens.head_detector` has three of these masks and
divides by all destinations, so that its largest score depends on how often tokens repeat.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROLES = ("previous", "self", "first", "duplicate", "induction")


def role_masks(
    tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None = None
) -> Bool[Tensor, "role batch pos pos"]:
    """Masks ``[destination source]`` in the order of `ROLES`; where ``real`` is False there is padding.

    >>> role_masks(torch.tensor([[7, 8, 7]]))[4, 0].int().tolist()
    [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    """
    batch, length = tokens.shape
    position = torch.arange(length, device=tokens.device)
    back = position[:, None] - position
    same = tokens[:, :, None] == tokens[:, None]
    after = torch.cat([torch.zeros_like(same[..., :1]), same[..., :-1]], -1)
    masks = torch.stack(
        [
            (back == 1).expand(batch, -1, -1),
            (back == 0).expand(batch, -1, -1),
            (position == 0).expand(batch, length, -1),
            same & (back > 0),
            after & (back >= 0),
        ]
    )
    counts = position > 0 if real is None else real & (position > 0)
    return masks & counts.expand(batch, -1)[..., None]


def role_sums(
    pattern: Float[Tensor, "batch head pos pos"], masks: Bool[Tensor, "role batch pos pos"]
) -> Float[Tensor, "role head"]:
    """Attention in each role, summed over destinations, in float64."""
    # Prompt by prompt: an einsum would first lay the patterns out anew.
    by_prompt = pattern.double().flatten(2) @ masks.double().flatten(2).permute(1, 2, 0)
    return by_prompt.sum(0).T


def destinations(masks: Bool[Tensor, "role batch pos pos"]) -> Int[Tensor, " role"]:
    """How many destinations have a source in each role."""
    return masks.any(-1).sum((1, 2))
