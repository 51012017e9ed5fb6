r"""**A neuron is a masked head of internal dimension 1.**

*Claim.* For an activation ``f(t) = sum_h (alpha_h t + delta_h) P_h(t)``, the MLP ``f(x W_in + b_in) W_out`` is one
layer of attention: every neuron becomes as many heads as the sum has terms.

*Construction.* Head h of neuron n sees its own token and its bias tokens. Its query is
``t = x . W_in[:, n] + b_in[n]``, the key of every token 0, the key of bias token j ``-l_j`` with ``a_j`` added to the
score. The softmax over the scores ``(0, a_1 - l_1 t, ...)`` leaves ``P_h(t)`` on the token itself, whose value is
``alpha_h t + delta_h``; bias tokens have value 0; the output weight is ``W_out[n]``. SiLU is one head with one bias
token: ``t e^0 / (e^0 + e^-t)``.

*Bound.* ``sum_n |W_out[n]|`` times the certified error of the sum (0 for SiLU), plus rounding.

*Source.* Huben & Morris 2023 for SiLU and its limits; sums with value offsets are ours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.gates import GateSum
from allheads.pure.runner import Heads


def neuron_heads(
    W_in: Float[Tensor, "d_model d_mlp"],
    b_in: Float[Tensor, " d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
    gates: GateSum,
) -> list[Heads]:
    """An MLP as heads, one entry per term of the sum.

    >>> from allheads.pure.runner import allowed, attend
    >>> from allheads.gates.approximation import approximate
    >>> one = torch.ones(1, 1)
    >>> (heads,) = neuron_heads(one, torch.zeros(1), one, approximate("silu"))
    >>> x = torch.tensor([[2.0], [-1.0]])
    >>> torch.allclose(attend(x, heads, allowed(heads, 2)), torch.nn.functional.silu(x))
    True
    """
    d_mlp = W_in.shape[1]
    query, bias = W_in.T[..., None], b_in[:, None]

    def per_neuron(row: tuple[float, ...]) -> Float[Tensor, "d_mlp token"]:
        return torch.tensor(row, dtype=W_in.dtype).expand(d_mlp, len(row))

    return [
        Heads(
            W_O=W_out[:, None],
            W_Q=query,
            b_Q=bias,
            W_V=alpha * query,
            b_V=alpha * bias + delta,
            bias_keys=-per_neuron(gate.slopes)[..., None],
            bias_offsets=per_neuron(gate.offsets),
        )
        for gate, alpha, delta in zip(gates.gates, gates.alpha, gates.delta, strict=True)
    ]
