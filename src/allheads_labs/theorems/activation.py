r"""**An activation function, applied to chosen coordinates in place, is a layer of heads.**

*Claim.* For ``f = sum_h (alpha_h t + delta_h) P_h``, the layer ``x_i <- f(x_i)`` for i in a set of coordinates takes
one head more per coordinate than the sum has terms; the other coordinates stay untouched.

*Construction.* A residual layer adds, so the heads write the correction ``f(x_i) - x_i``. They are the neurons with
``W_in[:, i] = e_i`` and ``W_out[i] = e_i`` for the sum ``f(t) - t``: the identity is one more term, a gate without bias
tokens, whose pattern is 1.

*Bound.* The certified error of the sum, in every coordinate, plus rounding.

*Source.* Huben & Morris 2023 for SiLU; other sums are ours.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from allheads.gates import Gate, GateSum
from allheads.pure.runner import Heads
from allheads_labs.theorems.neuron import neuron_heads


def activation_heads(gates: GateSum, chosen: Tensor, d_model: int) -> list[Heads]:
    """Heads that write ``f(x_i) - x_i`` at the chosen coordinates, in float64.

    >>> from allheads.pure.runner import allowed, attend
    >>> from allheads.gates.approximation import approximate
    >>> x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    >>> heads = activation_heads(approximate("silu"), torch.tensor([0, 2]), 3)
    >>> x = x + sum(attend(x, each, allowed(each, 1)) for each in heads)
    >>> x.allclose(torch.tensor([[0.7310586, -2.0, 2.8577224]], dtype=torch.float64))
    True
    """
    correction = replace(
        gates, gates=(*gates.gates, Gate((), ())), alpha=(*gates.alpha, -1.0), delta=(*gates.delta, 0.0)
    )
    unit = torch.eye(d_model, dtype=torch.float64)[chosen]
    return neuron_heads(unit.T, unit.new_zeros(len(chosen)), unit, correction)
