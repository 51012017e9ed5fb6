r"""**A whole transformer without norms is attention and nothing else.**

*Claim.* A transformer of attention layers and MLPs, without norms, equals one that has attention layers only.

*Construction*, by induction over the layers: with no layer left there is nothing to show. An attention layer is one
already; a bias vector of its output is one more head. An MLP becomes one layer of heads (`allheads_labs.theorems.mlp`).
The stream before the next layer is the same in both, so the rest is converted in the same way. Written with
``masks="weights"``, the result has no masks either: the bias tokens are positions of the stream.

*Bound.* Exact for exactly represented activations, plus rounding. Otherwise the error of each MLP passes through the
layers above it, for which no useful bound is known.

*Source.* Huben & Morris 2023. With norms between the layers the construction stays the same: they act
on the original coordinates (`allheads.pure.export`).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from allheads.pure.runner import Heads, Pure, Sublayer, write
from allheads_labs.theorems.mlp import PlainMLP, in_one_layer


@dataclass(frozen=True)
class Transformer:
    """Embedding, learned positions, layers that are heads or MLPs, unembedding; no norms."""

    embed: Float[Tensor, "d_vocab d_model"]
    positions: Float[Tensor, "n_ctx d_model"]
    layers: list[Heads | PlainMLP]
    unembed: Float[Tensor, "d_model d_vocab"]

    def __call__(self, tokens: Tensor) -> Float[Tensor, "pos d_vocab"]:
        """Logits, MLPs evaluated as MLPs."""
        x = self.embed[tokens] + self.positions[: len(tokens)]
        for layer in self.layers:
            x = x + (layer(x) if isinstance(layer, PlainMLP) else write(x, len(x), Sublayer("attention", [layer])))
        return x @ self.unembed


def attention_only(model: Transformer, name: str = "transformer") -> Pure:
    """The same transformer as a list of attention layers."""
    return Pure(
        name=name,
        n_ctx=len(model.positions),
        embed=model.embed,
        unembed=model.unembed,
        positions=model.positions,
        sublayers=[_as_attention(number, layer) for number, layer in enumerate(model.layers)],
    )


def _as_attention(number: int, layer: Heads | PlainMLP) -> Sublayer:
    if isinstance(layer, PlainMLP):
        return Sublayer(f"L{number}.N", in_one_layer(layer).heads)
    return Sublayer(f"L{number}.A", [layer])
