r"""**A gated unit is two heads, in two ways.**

*Claim.* ``SiLU(g) u`` for readings g and u of the stream, on ``|g| <= G``, is a sum of two heads whose values are
multiples of u, with any error wanted: by a ramp, or by a cancelling pair.

*Construction.* The ramp: ``g sigma(g) = (g + d) sigma(g) - d sigma(g)``, and a gate with enough bias tokens follows
``(g + d) sigma(g) / C`` (`allheads.gates.fitting.gated_fits`). The cancelling pair: with a small e

    g  ~  (2 / e) tanh(e g / 2)  =  (2 / e) (sigma(e g) - sigma(-e g)),

and ``sigma(+-e g) sigma(g)`` are gates with three bias tokens each (`allheads_labs.theorems.products`).

*Bound.* The ramp: the certified error, times ``(0.3 + |SiLU(g)|) |u|``. The pair: ``(1 / e) tanh(y)`` with ``y = e g
/ 2`` stands for ``g / 2``, and ``|y - tanh(y)| <= |y|^3 / 3`` is ``(e g)^2 / 12`` of it; but rounding of the two
patterns grows by ``1 / e``, so that in float32 no e is good, and with one of the heads gone the other writes
``sigma(e g) sigma(g) u / e``.

*Source.* Ours; the paper does not treat gated MLPs.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from allheads.gates import Gate, GateSum, activation_named
from allheads.pure.runner import Heads
from allheads_labs.theorems.neuron import neuron_heads


def gated_heads(
    W_gate: Float[Tensor, "d_model d_mlp"],
    W_in: Float[Tensor, "d_model d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
    gates: GateSum,
) -> list[Heads]:
    """``(f(x W_gate) * (x W_in)) W_out`` as heads: queries read the gate, values the other reading.

    >>> import torch
    >>> from allheads.pure.runner import allowed, attend
    >>> W, x = torch.eye(2).double(), torch.tensor([[2.0, -1.0]]).double()
    >>> heads = gated_heads(W, W.flip(0), W, cancelling_pair(1e-4, domain=64.0))
    >>> out = sum(attend(x, each, allowed(each, 1)) for each in heads)
    >>> torch.allclose(out, torch.nn.functional.silu(x) * x.flip(1))
    True
    """
    like_plain = replace(gates, alpha=(0.0,) * gates.heads)
    values = [delta * W_in.T[..., None] for delta in gates.delta]
    heads = neuron_heads(W_gate, W_gate.new_zeros(W_gate.shape[1]), W_out, like_plain)
    return [replace(each, W_V=value, b_V=None) for each, value in zip(heads, values, strict=True)]


def cancelling_pair(e: float, domain: float) -> GateSum:
    """``(2 / e) (sigma(e g) - sigma(-e g)) sigma(g)``, within ``(e g)^2 / 12`` of SiLU(g), relatively.

    >>> cancelling_pair(0.01, domain=8.0).bias_tokens
    (3, 3)
    """
    logistic = Gate((0.0,), (1.0,))
    pair = tuple(logistic.stretched(sign * e) * logistic for sign in (1, -1))
    return GateSum(activation_named("silu"), True, pair, (0.0, 0.0), (2 / e, -2 / e), (e * domain) ** 2 / 12, domain)
