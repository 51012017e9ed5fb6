"""The transformer that answers, and what each of its heads sees and says when it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allheads_labs.kit.fitting import seeded
from allheads_labs.kit.small_models import PairEmbedding, PairModel, decoder
from allheads_labs.roles.task import ATTRIBUTES, D_VOCAB, KEYS, LENGTH, VALUES


@dataclass(frozen=True)
class HeadActivations:
    """At the question, heads of all layers in a row: logits, where each looks, and what it has read, before W_O."""

    logits: Float[Tensor, "batch attribute value"]
    patterns: Float[Tensor, "batch head token"]
    outputs: Float[Tensor, "batch head d_head"]


class Reader(PairModel):
    """Embedding, a GPT-2 without positions, and a readout of every attribute at the question."""

    def __init__(self, d_model: int, heads: int, layers: int, seed: int) -> None:
        super().__init__()
        self.heads = heads
        with seeded(seed):
            self.embed = PairEmbedding(KEYS, ATTRIBUTES * VALUES, d_model, filler=False)
            self.body = decoder(D_VOCAB, LENGTH, d_model=d_model, n_heads=heads, n_layers=layers)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch attribute value"]:
        """Logits of the values of every attribute."""
        return self._answers(self.body.transformer(inputs_embeds=self.embed(tokens)))

    @torch.no_grad()
    def activations(self, tokens: Int[Tensor, "batch pos"]) -> HeadActivations:
        """Patterns and outputs of every head at the question."""
        outputs: list[Tensor] = []
        handles = [
            block.attn.c_proj.register_forward_pre_hook(lambda _, given: outputs.append(given[0][:, -1]))
            for block in self.body.transformer.h
        ]
        self.body.set_attn_implementation("eager")
        try:
            run = self.body.transformer(inputs_embeds=self.embed(tokens), output_attentions=True)
        finally:
            self.body.set_attn_implementation("sdpa")
            for handle in handles:
                handle.remove()
        read = torch.cat([output.unflatten(-1, (self.heads, -1)) for output in outputs], 1)
        patterns = torch.cat([pattern[:, :, -1, :-1] for pattern in run.attentions], 1)
        return HeadActivations(self._answers(run), patterns, read)

    @contextmanager
    def ablated(self, head: int) -> Iterator[None]:
        """Within the block a head, counted through all layers, says nothing at the question."""
        layer, number = divmod(head, self.heads)
        projection = self.body.transformer.h[layer].attn.c_proj

        def silence(_: nn.Module, given: Sequence[Tensor]) -> tuple[Tensor]:
            heads = given[0].unflatten(-1, (self.heads, -1)).clone()
            heads[:, -1, number] = 0
            return (heads.flatten(-2),)

        handle = projection.register_forward_pre_hook(silence)
        try:
            yield
        finally:
            handle.remove()

    def _answers(self, run: Any) -> Tensor:
        unembed = self.body.lm_head.weight[: ATTRIBUTES * VALUES]
        return (run.last_hidden_state[:, -1] @ unembed.mT).unflatten(-1, (ATTRIBUTES, VALUES))
