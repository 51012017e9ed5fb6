"""Twins for labs: a small trained transformer beside its own, and those of pretrained models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import allheads as ah
from allheads import TwinBridge
from allheads.disk import digest


@dataclass(frozen=True)
class SideBySide:
    """Logits at the last position, of the source and of its twin, and the source's patterns, layer by layer.

    ``pattern_gap`` is the largest difference between a weight of the source's patterns and of the twin's.
    """

    source: Float[Tensor, "batch d_vocab"]
    twin: Float[Tensor, "batch d_vocab"]
    patterns: Float[Tensor, "layer batch head to from"]
    pattern_gap: float

    def compared(self, name: str, measure: Callable[[Tensor], float]) -> dict[str, float]:
        """A measure of the logits of both, and how far their patterns are apart, as JSON."""
        return {
            name: measure(self.source),
            f"twin_{name}": measure(self.twin),
            "pattern_gap": self.pattern_gap,
        }


def side_by_side(source: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> SideBySide:
    """Both on the same ids; the twin by slots, one softmax for each neuron, and not by the source's own formula."""
    twin = ah.convert(source)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(source.cfg.n_layers)]
    with torch.no_grad(), twin.evaluated("slots"):
        (ours, twin_cache), (theirs, source_cache) = (
            model.run_with_cache(tokens, names_filter=names, return_cache_object=False) for model in (twin, source)
        )
    gap = max(float((source_cache[name] - twin_cache[name]).abs().max()) for name in names)
    return SideBySide(theirs[:, -1], ours[:, -1], torch.stack([source_cache[name] for name in names]), gap)


def twin_digest(twin: TwinBridge) -> str:
    """Names results by what was read, and not by where: tensors, gates, configuration and tokenizer."""
    network, tokenizer = twin.original_model, twin.tokenizer
    about = [repr((bank.gates.gates, bank.gates.alpha, bank.gates.delta)) for bank in twin.banks]
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        about.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest(content)}")
    if (config := getattr(network, "config", None)) is not None:
        about.append(config.to_json_string())
    if tokenizer is not None:
        fast = getattr(tokenizer, "backend_tokenizer", None)
        about.append(repr(sorted(tokenizer.get_vocab().items())) if fast is None else fast.to_str())
    return digest("\n".join(about))
