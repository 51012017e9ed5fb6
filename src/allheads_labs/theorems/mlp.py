r"""**An MLP is three layers of attention, or one.**

*Claim.* ``x <- x + f(x W_in + b_in) W_out + b_out`` is (three-layer form) linear heads, activation heads, linear
heads, on a stream with d_mlp more coordinates; and it is (one-layer form) the heads of its neurons.

*Construction.* Three layers: linear heads write ``x W_in + b_in`` into d_mlp empty coordinates h; activation heads turn
h into ``f(h)`` in place; linear heads add ``h W_out + b_out`` to x and ``-h`` to h, which empties it for the next MLP.
One layer: `neuron_heads` and a constant head for ``b_out``; the stream stays as wide as it is.

*Bound.* ``sum_n |W_out[n]|`` times the certified error of the activation, plus rounding, in both forms.

*Source.* Huben & Morris 2023, who have both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from allheads.gates import GateSum
from allheads.pure.runner import Sublayer
from allheads_labs.theorems.activation import activation_heads
from allheads_labs.theorems.linear import constant_head, linear_heads
from allheads_labs.theorems.neuron import neuron_heads


@dataclass(frozen=True)
class PlainMLP:
    """``f(x W_in + b_in) W_out + b_out``, in float64."""

    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    gates: GateSum

    def __call__(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """The MLP itself, with its own activation function."""
        return self.gates.activation(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


def in_one_layer(mlp: PlainMLP) -> Sublayer:
    """The heads of the neurons, and a constant head.

    >>> from allheads.pure.runner import write
    >>> from allheads.gates.approximation import approximate
    >>> draw = torch.Generator().manual_seed(0)
    >>> W_in, W_out, x = (torch.randn(s, generator=draw).double() for s in ((3, 8), (8, 3), (5, 3)))
    >>> mlp = PlainMLP(W_in, torch.ones(8).double(), W_out, torch.ones(3).double(), approximate("silu"))
    >>> bool((write(x, 5, in_one_layer(mlp)) - mlp(x)).abs().max() < 1e-13)
    True
    """
    return Sublayer("mlp", [*neuron_heads(mlp.W_in, mlp.b_in, mlp.W_out, mlp.gates), *constant_head(mlp.b_out)])


def in_three_layers(mlp: PlainMLP, *, d_head: int) -> list[Sublayer]:
    """Linear, activation and linear heads on the stream ``[x | h]``, h empty before and after.

    >>> from allheads.pure.runner import write
    >>> from allheads.gates.approximation import approximate
    >>> W = torch.eye(2).double()
    >>> mlp = PlainMLP(W, torch.ones(2).double(), W, torch.zeros(2).double(), approximate("silu"))
    >>> stream = torch.tensor([[0.5, -1.0, 0.0, 0.0]]).double()
    >>> for layer in in_three_layers(mlp, d_head=2):
    ...     stream = stream + write(stream, 1, layer)
    >>> torch.allclose(stream[:, :2], torch.tensor([[0.5, -1.0]]).double() + mlp(torch.tensor([[0.5, -1.0]]).double()))
    True
    """
    d_model, d_mlp = mlp.W_in.shape
    into = F.pad(mlp.W_in, (d_model, 0, 0, d_mlp))
    out = torch.zeros(d_model + d_mlp, d_model + d_mlp).to(mlp.W_out)
    out[d_model:] = torch.cat([mlp.W_out, -torch.eye(d_mlp).to(mlp.W_out)], 1)
    hidden = torch.arange(d_model, d_model + d_mlp)
    return [
        Sublayer("linear", linear_heads(into, F.pad(mlp.b_in, (d_model, 0)), d_head=d_head)),
        Sublayer("activation", activation_heads(mlp.gates, hidden, d_model + d_mlp)),
        Sublayer("linear", linear_heads(out, F.pad(mlp.b_out, (0, d_mlp)), d_head=d_head)),
    ]
