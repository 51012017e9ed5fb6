r"""How far rounding can take an evaluation from exact arithmetic: an a-priori bound, written down.

Let u be the unit roundoff (half of eps) of the projections, p that of the patterns, and gamma_n = n u / (1 - n u),
the bound on the relative error of n roundings in a row (Higham 2002, ch. 3). Hats are computed values.

1. Projections (dot products of length d_model plus a bias, in any order of summation), by Cauchy-Schwarz:
   |t^ - t| <= e_t = gamma_{d+2} (||x|| ||W_Q|| + |b_Q|), and e_u, e_k likewise for values and self keys.
2. Scores s_j = a_j + k_j t: coefficients rounded once, a product, a sum, and the maximum M taken off. Against the
   score of the token itself, that of bias token j is off by at most
   E_j = |k_j| e_t + p (7 |k_j t| + 4 |a_j| + 2 |M|), plus 2 (|t| e_k + |k| e_t + e_t e_k + 6 p |t k|) for a self key k.
3. Patterns: P = sigma(L), L = s_self - log sum_j exp(s_j). With w = softmax(s_1 .. s_B), L is off by at most
   D = log sum_j w_j e^{E_j}, downward because L falls in every s_j, and upward because sum w e^E sum w e^-E >= 1:
   |P^ - P| <= e_P = max(sigma(L + D) - P, P - sigma(L - D)) + (2 B + 10) p P,
   the last term for B + 1 exponentials of two ulp, their sum and a quotient.
4. Values v = alpha u + delta: e_v = |alpha| e_u + p (5 |alpha| (|u| + e_u) + 3 |delta|).
5. z = P v: e_z = |v| e_P + P e_v + e_P e_v + p |z|; the sum over a neuron's H heads in the dtype of the patterns and
   one cast to that of the stream add (H p + u) sum |z|.
6. Output, a dot product over all heads and a bias, by Cauchy-Schwarz again:
   e_out = || e_post + gamma_{M+1} (|post| + e_post) || ||W_O|| + gamma_{M+1} |b_O|.

The literal `attention` sums its softmax over N + B slots instead of B + 1; masked slots have weight exactly zero, so
only the count in step 3 changes. The `closed` evaluation replaces steps 2 to 5 by f itself, see `closed_rounding`.
The bound leaves out terms of third order in the roundoff and what is below the smallest normal number, and is
pessimistic by one to three orders of magnitude, because roundings cancel. It exists for float32 and float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.gates.activations import Activation
from allheads.heads.evaluate import slot_scores
from allheads.heads.weights import HeadWeights

#: The largest slope of GELU, in all its forms; SiLU's is 1.10.
_SLOPE = 1.13

#: Where ``e^E`` is left alone.
_STEEP = 300.0

#: Roundings in one evaluation of an activation function, in ulps of its result and of its argument.
_ACTIVATION_ULPS = 16


@dataclass(frozen=True)
class Projections:
    """Exact query and value inputs, ``[batch pos part|1 neuron]``, and how far rounding can take them."""

    t: Tensor
    e_t: Tensor
    u: Tensor
    e_u: Tensor


def project(heads: HeadWeights, x: Float[Tensor, "batch pos d_model"], dtype: torch.dtype) -> Projections:
    """Step 1, for heads and input given in float64."""
    roundoff = _roundoff(dtype)
    t, e_t = _project(heads.W_Q, heads.b_Q, x, roundoff)
    if heads.W_V is None:
        return Projections(t, e_t, t, e_t)
    return Projections(t, e_t, *_project(heads.W_V, heads.b_V, x, roundoff))


# More than five arguments: the bound depends on the weights, the input and both precisions; the last two are optional.
def heads_rounding(
    heads: HeadWeights,
    x: Float[Tensor, "batch pos d_model"],
    dtype: torch.dtype,
    pattern_dtype: torch.dtype,
    *,
    slots: int | None = None,
    projections: Projections | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Bound on ``|slots or attention, computed, - exact|`` for heads and input given in float64.

    ``slots`` is how many scores each softmax takes: one plus the bias tokens by default, N + B for `attention`.
    """
    u, p = _roundoff(dtype), _roundoff(pattern_dtype)
    read = projections or project(heads, x, dtype)
    key = None if heads.W_K is None else _project(heads.W_K, heads.b_K, x, u)
    post, e_post = [], []
    for part in range(heads.parts):
        alpha, delta, value = heads.alpha[part], heads.delta[part], _pick(read.u, part)
        P, e_P = _pattern(heads, part, _pick(read.t, part), _pick(read.e_t, part), key, p, slots)
        v, e_u = alpha * value + delta, _pick(read.e_u, part)
        e_v = alpha.abs() * e_u + p * (5 * alpha.abs() * (value.abs() + e_u) + 3 * delta.abs())
        z = P * v
        post.append(z)
        e_post.append(v.abs() * e_P + P * e_v + e_P * e_v + p * z.abs() + (heads.parts * p + u) * z.abs())
    return _output(heads, post, e_post, u)


def closed_rounding(
    heads: HeadWeights,
    x: Float[Tensor, "batch pos d_model"],
    dtype: torch.dtype,
    activation: Activation,
    *,
    projections: Projections | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Bound on ``|closed, computed, - f in exact arithmetic|``.

    ``|f'| <= 1.13`` for every activation of the registry, except squared ReLU, whose slope is ``2 |t|``, and
    ``1.13 |a|`` for ``a t sigma(k t)``.
    """
    u, read = _roundoff(dtype), projections or project(heads, x, dtype)
    t, e_t = _pick(read.t, 0), _pick(read.e_t, 0)
    slope = 2 * t.abs() + 2 * e_t if activation.squared else _SLOPE * abs((activation.silu_form or (1.0,))[0])
    f = activation(t)
    e_f = slope * e_t + _ACTIVATION_ULPS * u * (f.abs() + t.abs())
    if heads.W_V is not None:
        value, e_u = _pick(read.u, 0), _pick(read.e_u, 0)
        f, e_f = f * value, value.abs() * e_f + f.abs() * e_u + e_f * e_u + u * (f * value).abs()
    return _output(heads, [f], [e_f], u)


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _pick(tensor: Tensor, part: int) -> Float[Tensor, "batch pos neuron"]:
    return tensor[..., part % tensor.shape[2], :]


def _gamma(count: int, u: float) -> float:
    if count * u >= 0.5:
        raise AllHeadsError("sums short enough for their dtype", f"{count} terms", "Bound them in float32 or float64.")
    return count * u / (1 - count * u)


def _project(weight: Tensor, bias: Tensor | None, x: Tensor, u: float) -> tuple[Tensor, Tensor]:
    """Exact value and error bound, ``[batch pos part|1 neuron]``."""
    flat = weight.flatten(0, 1)
    exact = x @ flat.T
    size = x.norm(dim=-1, keepdim=True) * flat.norm(dim=-1)
    if bias is not None:
        exact, size = exact + bias.flatten(), size + bias.flatten().abs()
    shape = weight.shape[:2]
    return exact.unflatten(-1, shape), (_gamma(x.shape[-1] + 2, u) * size).unflatten(-1, shape)


# More than five arguments: each is a symbol of steps 2 and 3.
def _pattern(
    heads: HeadWeights,
    part: int,
    t: Tensor,
    e_t: Tensor,
    key: tuple[Tensor, Tensor] | None,
    p: float,
    slots: int | None,
) -> tuple[Float[Tensor, "batch pos neuron"], Float[Tensor, "batch pos neuron"]]:
    """Steps 2 and 3: the exact pattern on self and its error bound."""
    count = heads.tokens(part)
    if not count:
        return torch.ones_like(t), torch.zeros_like(t)
    offsets = heads.bias_offsets[part, :, :count]
    self_key = None if key is None else _pick(key[0], part).flatten(0, -2)
    flat, e_flat = t.flatten(0, -2), e_t.flatten(0, -2)
    scores = slot_scores(heads, part, flat, self_key)
    K = heads.bias_keys[part, :, :count].abs().T[:, None]
    A = torch.where(offsets > -torch.inf, offsets.abs(), 0).T[:, None]
    E = K * e_flat + p * (7 * K * flat.abs() + 4 * A + 2 * scores.amax(0).abs())
    if key is not None:
        k, e_k = (_pick(tensor, part).flatten(0, -2) for tensor in key)
        E = E + 2 * (flat.abs() * e_k + k.abs() * e_flat + e_flat * e_k + 6 * p * (flat * k).abs())
    L = (scores[0] - scores[1:].logsumexp(0)).view_as(t)
    # In log1p and expm1 small E are not lost; the largest E is a bound as well, for where e^E would overflow.
    D = (scores[1:].softmax(0) * E.clamp_max(_STEEP).expm1()).sum(0).log1p()
    D = torch.where(E.amax(0) > _STEEP, E.amax(0), D).view_as(t)
    P = torch.sigmoid(L)
    spread = torch.maximum(torch.sigmoid(L + D) - P, P - torch.sigmoid(L - D))
    operations = 2 * (count if slots is None else slots - 1) + 10
    return P, spread + operations * p * P


def _output(heads: HeadWeights, post: list[Tensor], e_post: list[Tensor], u: float) -> Tensor:
    gamma = _gamma(heads.parts * heads.neurons + 1, u)
    total = torch.zeros_like(post[0][..., :1]) if heads.b_O is None else gamma * heads.b_O.abs()
    for part, (z, e_z) in enumerate(zip(post, e_post, strict=True)):
        W_O = heads.W_O[part % heads.W_O.shape[0]]
        total = total + (e_z + gamma * (z.abs() + e_z)).norm(dim=-1, keepdim=True) * W_O.norm(dim=0)
    return total
