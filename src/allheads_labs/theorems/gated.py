r"""**Gated units are heads, within a domain, and what no heads can do.**

*A gated unit is two heads, in two ways* (`gated_heads`). ``SiLU(g) u`` for readings g and u of the stream, on ``|g| <=
G``, is a sum of two heads whose values are multiples of u, with any error wanted. By a ramp: ``g sigma(g) = (g + d)
sigma(g) - d sigma(g)``, and a gate with enough bias tokens follows ``(g + d) sigma(g) / C``
(`allheads.gates.fitting.gated_fits`); its bound is the certified error, times ``(0.3 + |SiLU(g)|) |u|``. Or by a
cancelling pair: with a small e

    g  ~  (2 / e) tanh(e g / 2)  =  (2 / e) (sigma(e g) - sigma(-e g)),

and ``sigma(+-e g) sigma(g)`` are gates with three bias tokens each. ``(1 / e) tanh(y)`` with ``y = e g / 2`` stands for
``g / 2``, and ``|y - tanh(y)| <= |y|^3 / 3`` is ``(e g)^2 / 12`` of it; but rounding of the two patterns grows by
``1 / e``, so that in float32 no e is good; without one of the heads the other writes ``sigma(e g) sigma(g) u / e``.

*Products of gates are gates* (`product_head`). ``P(s) Q(t)`` for gates of two readings is the pattern of one head with
``d_head = 2`` and ``(A + 1)(B + 1) - 1`` bias tokens: ``(1 + sum_i e^{s_i}) (1 + sum_j e^{r_j})`` is 1 plus every
``e^{s_i}``, every ``e^{r_j}`` and every ``e^{s_i + r_j}``. Exact, plus rounding; so is every product of logistic
functions of linear readings, by induction.

*One head is never a gated unit* (`one_head_error`). A head whose value is ``delta u`` writes ``delta P(g) u`` with
``P >= 0``: its coefficient of u has one sign. That of SiLU has two: ``SiLU(1) > 0`` and ``SiLU(-1.278...) =
-0.27846...``. So a head with ``delta >= 0`` is off by 0.278 |u| at the minimum of SiLU, and one with ``delta < 0`` is
off by ``SiLU(g) |u|`` for every g > 0. Two heads are the least.

*No finite sum is exact everywhere* (`witness`). Patterns lie in [0, 1] and values are linear in the stream. With
``D = sum_h |delta_h|`` the heads write at most ``D |u|``, the gated unit writes ``SiLU(g) |u| >= (g - 0.279) |u|`` for
g > 0. So at ``g = 2 D + 1`` they are apart by more than ``D |u|``: whatever the heads, every statement about them needs
a domain. (If values read the whole stream: along a ray ``x = r y`` heads grow linearly in r, and ``SiLU(g) u`` like
r^2.) Nor is a sum exact on any interval: both sides are analytic in g, and would then agree everywhere.

*After a norm, the domain of a gate is a theorem* (`reach`). If the stream is read through RMSNorm with gain ``gamma``,
then for every input, however large, ``|w . x + b| <= |b| + sqrt(d_model) ||gamma * w||``, and through LayerNorm with
shift ``beta`` likewise, with ``|w . beta + b|`` and ``gamma * w`` less its mean: norms write ``gamma * n + beta`` with
``||n|| <= sqrt(d_model)``, and LayerNorm n orthogonal to 1; the rest is Cauchy and Schwarz. Equality holds in the limit
of large inputs along ``gamma * w`` (`worst_input`): the bound is the best possible.

*Source.* Ours; the paper does not treat gated MLPs. `allheads.models.norms` measures gamma and beta of a model.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.gates import Gate, GateSum, activation_named
from allheads.pure.runner import Heads, Norm
from allheads_labs.theorems.mlps import neuron_heads


def gated_heads(
    W_gate: Float[Tensor, "d_model d_mlp"],
    W_in: Float[Tensor, "d_model d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
    gates: GateSum,
) -> list[Heads]:
    """``(f(x W_gate) * (x W_in)) W_out`` as heads: queries read the gate, values the other reading.

    >>> from allheads.pure.runner import allowed, attend
    >>> W, x = torch.eye(2).double(), torch.tensor([[2.0, -1.0]]).double()
    >>> heads = gated_heads(W, W.flip(0), W, cancelling_pair(1e-4, domain=64.0))
    >>> out = sum(attend(x, term, allowed(term, 1)) for term in heads)
    >>> torch.allclose(out, torch.nn.functional.silu(x) * x.flip(1))
    True
    """
    like_plain = replace(gates, alpha=(0.0,) * gates.heads)
    values = [delta * W_in.T[..., None] for delta in gates.delta]
    heads = neuron_heads(W_gate, W_gate.new_zeros(W_gate.shape[1]), W_out, like_plain)
    return [replace(term, W_V=value, b_V=None) for term, value in zip(heads, values, strict=True)]


def cancelling_pair(e: float, domain: float) -> GateSum:
    """``(2 / e) (sigma(e g) - sigma(-e g)) sigma(g)``, within ``(e g)^2 / 12`` of SiLU(g), relatively.

    >>> cancelling_pair(0.01, domain=8.0).bias_tokens
    (3, 3)
    """
    logistic = Gate((0.0,), (1.0,))
    pair = tuple(logistic.stretched(sign * e) * logistic for sign in (1, -1))
    return GateSum(activation_named("silu"), True, pair, (0.0, 0.0), (2 / e, -2 / e), (e * domain) ** 2 / 12, domain)


def product_head(
    first: Gate, second: Gate, readings: Float[Tensor, "d_model 2"], value: Float[Tensor, " d_model"]
) -> Heads:
    """A head that writes ``P(x . readings[:, 0]) Q(x . readings[:, 1]) value``.

    >>> from allheads.pure.runner import allowed, attend
    >>> logistic, x = Gate((0.0,), (1.0,)), torch.tensor([[1.0, -2.0]])
    >>> head = product_head(logistic, logistic, torch.eye(2), torch.ones(2))
    >>> torch.allclose(attend(x, head, allowed(head, 1)), x[0].sigmoid().prod().expand(1, 2))
    True
    """
    terms = [
        (a + b, (-k, -m))
        for a, k in [(0.0, 0.0), *zip(first.offsets, first.slopes, strict=True)]
        for b, m in [(0.0, 0.0), *zip(second.offsets, second.slopes, strict=True)]
    ][1:]
    return Heads(
        W_Q=readings[None],
        b_V=torch.tensor([[1.0, 0.0]]).to(readings),
        W_O=torch.stack([value, torch.zeros_like(value)])[None],
        bias_offsets=torch.tensor([[offset for offset, _ in terms]], dtype=readings.dtype),
        bias_keys=torch.tensor([[key for _, key in terms]], dtype=readings.dtype),
    )


def one_head_error(gate: Gate, delta: float, *, reach: float = 40.0) -> float:
    """``max |delta P(g) - SiLU(g)|`` on a grid: never below 0.278, whatever the head.

    >>> one_head_error(Gate((0.0,), (1.0,)), 1.0) > 0.278
    True
    """
    g = torch.linspace(-reach, reach, 2001, dtype=torch.float64)
    return float((delta * gate(g) - torch.nn.functional.silu(g)).abs().max())


def witness(gates: GateSum) -> tuple[float, float]:
    """A g at which a gated sum is off, and a proved lower bound of how far: ``D = sum |delta|``.

    >>> from allheads.gates.approximation import approximate
    >>> g, apart = witness(approximate("silu", gated=True))
    >>> t = torch.tensor(g, dtype=torch.float64)
    >>> bool((approximate("silu", gated=True)(t) - torch.nn.functional.silu(t)).abs() > apart > 10)
    True
    """
    most = sum(abs(delta) for delta in gates.delta)
    return 2 * most + 1, most


def reach(norm: Norm, w: Float[Tensor, " d_model"], b: float = 0.0) -> float:
    """The largest ``|w . norm(x) + b|`` over all x.

    >>> norm = Norm(torch.ones(4).double(), torch.zeros(4).double(), centred=False, eps=1e-5)
    >>> reach(norm, torch.tensor([1.0, 0, 0, 0]).double())
    2.0
    """
    direction = _direction(norm, w)
    return abs(float(norm.shift @ w) + b) + math.sqrt(len(w)) * float(direction.norm())


def worst_input(norm: Norm, w: Float[Tensor, " d_model"], b: float = 0.0, *, size: float = 1e6) -> Tensor:
    """An input that nearly reaches the bound: ``gamma * w``, large, with the sign of the offset.

    >>> norm = Norm(torch.ones(4).double(), torch.zeros(4).double(), centred=False, eps=1e-5)
    >>> w = torch.tensor([3.0, 0, 0, 4.0]).double()
    >>> bool((norm(worst_input(norm, w)) @ w - reach(norm, w)).abs() < 1e-9)
    True
    """
    direction = _direction(norm, w)
    sign = -1.0 if float(norm.shift @ w) + b < 0 else 1.0
    return sign * size * direction / direction.norm()


def _direction(norm: Norm, w: Tensor) -> Tensor:
    direction = norm.gain * w
    return direction - direction.mean() if norm.centred else direction
