"""The weights of a bank of heads, in the compact form that the evaluations read.

A neuron is a *part*-wise sum of heads: part h of every neuron has the same gate unless somebody edited it, and
all parts of a neuron read the same projections. So an axis of length 1 stands for "the same for all", and
nothing is copied. Head number ``part * d_mlp + neuron`` of the bank is part ``part`` of neuron ``neuron``.

    query   q = x W_Q + b_Q                      value   v = alpha (x W_V + b_V) + delta
    scores  self q (x W_K + b_K), bias tokens q key + offset
    output  sum over heads of pattern_on_self v W_O, plus b_O

The offset of a bias token is its entry in the additive attention mask: 0 on the token itself, minus infinity on
every other position. The value of a bias token is zero. The scores are not divided by sqrt(d_head).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class HeadWeights:
    """Everything a bank computes with. ``part`` and ``neuron`` axes marked 1 broadcast.

    >>> weights = twin.banks[3].weights()
    >>> weights.parts, weights.neurons, weights.edited
    (2, 1024, False)
    """

    W_Q: Float[Tensor, "part|1 neuron d_model"]
    b_Q: Float[Tensor, "part|1 neuron"] | None
    W_K: Float[Tensor, "part neuron d_model"] | None  # None: zero, as in every converted neuron
    b_K: Float[Tensor, "part neuron"] | None
    W_V: Float[Tensor, "part|1 neuron d_model"] | None  # None: the value reads the query's projection
    b_V: Float[Tensor, "part|1 neuron"] | None
    W_O: Float[Tensor, "part|1 neuron d_model"]
    b_O: Float[Tensor, " d_model"] | None
    bias_keys: Float[Tensor, "part neuron|1 token"]
    bias_offsets: Float[Tensor, "part neuron|1 token"]
    alpha: Float[Tensor, " part"]
    delta: Float[Tensor, " part"]

    @property
    def parts(self) -> int:
        """Heads per neuron."""
        return self.bias_keys.shape[0]

    @property
    def neurons(self) -> int:
        """``d_mlp``."""
        return self.W_Q.shape[1]

    @property
    def edited(self) -> bool:
        """Were the heads edited, so that those of a neuron no longer share its weights?"""
        return self.W_K is not None

    def tokens(self, part: int) -> int:
        """Bias tokens up to the last one that a head of this part can attend to; an offset of -inf masks one."""
        open_to_some = (self.bias_offsets[part] > -torch.inf).any(0).nonzero()
        return int(open_to_some.max()) + 1 if len(open_to_some) else 0

    def part(self, number: int) -> HeadWeights:
        """The heads of one part of every neuron."""

        def narrowed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[number % len(tensor)][None]

        return replace(self, **{f.name: narrowed(getattr(self, f.name)) for f in fields(self) if f.name != "b_O"})

    def only(self, neuron: int) -> HeadWeights:
        """The heads of one neuron."""

        def narrowed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, neuron : neuron + 1]

        per_neuron = {name: narrowed(getattr(self, name)) for name in ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O")}
        if self.bias_keys.shape[1] > 1:
            per_neuron |= {"bias_keys": narrowed(self.bias_keys), "bias_offsets": narrowed(self.bias_offsets)}
        return replace(self, **per_neuron)

    def to(self, dtype: torch.dtype) -> HeadWeights:
        """The same weights in another dtype: what a proof in float64 computes with."""
        changes = {
            field.name: value.to(dtype) for field in fields(self) if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **changes)
