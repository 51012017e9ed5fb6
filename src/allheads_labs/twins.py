"""A small trained transformer beside its attention-only twin: the same answers, and the same patterns?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from allheads.twin.convert import convert


@dataclass(frozen=True)
class SideBySide:
    """Logits at the last position, of the source and of its twin, and the source's patterns, layer by layer.

    ``pattern_gap`` is the largest difference between a weight of the source's patterns and of the twin's.
    """

    source: Float[Tensor, "batch d_vocab"]
    twin: Float[Tensor, "batch d_vocab"]
    patterns: Float[Tensor, "layer batch head to from"]
    pattern_gap: float


def side_by_side(source: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> SideBySide:
    """Both on the same ids; the twin by slots, one softmax for each neuron, and not by the source's own formula."""
    twin = convert(source)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(source.cfg.n_layers)]
    with torch.no_grad(), twin.evaluated("slots"):
        (ours, seen), (theirs, known) = (
            model.run_with_cache(tokens, names_filter=names, return_cache_object=False) for model in (twin, source)
        )
    gap = max(float((known[name] - seen[name]).abs().max()) for name in names)
    return SideBySide(theirs[:, -1], ours[:, -1], torch.stack([known[name] for name in names]), gap)
