r"""**A masking pattern can be weights.**

*Claim.* For every boolean pattern ``mask [query key]`` without empty rows there is an attention head without a mask,
on the stream augmented by a one-hot block for the positions (that of a bias token is its flag), whose patterns differ
from the masked ones by as little as wanted.

*Construction.* The one-hot blocks of W_Q and W_K add ``omega`` to the score of every pair that is seen
(`allheads.pure.runner.in_weights`). Softmax ignores what is added to a whole row, so nothing else changes.

*Bound.* Let no hidden score of a row exceed its largest seen score by more than ``spread``. A row with m hidden keys
gives them together at most

    leak  <=  m e^(spread - omega),

and no entry of the pattern moves by more than that. In floating point with unit roundoff u, every score carries omega
and so an error of ``u (d_head + 2) (s + omega)`` where ``s = scale sum_c |q_c| |k_c| + |offset|``: a larger omega
does not help for ever. `omega_within` takes the one that a tolerance asks for, or the best. Queries and keys are as
computed: their own rounding is the same under a mask.

*Ordinary heads need not notice the bias tokens* (`beside_bias_tokens`). On a stream with bias positions they write at
the real positions what they write without, and nothing at the others: the one-hot block hides bias positions like any
other mask, a bias position sees only itself, and what the head reads there is taken away by the rows of the block, so
that its value is 0. The bound is that of the mask, times the largest value.

*Source.* Huben & Morris 2023; the bound and the choice of omega are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allheads import AllHeadsError
from allheads.pure.runner import Heads, allowed, attend, in_weights, keys, queries, spread


@dataclass(frozen=True)
class Omega:
    """What is added to scores that are seen, and how far an entry of a pattern can be off for it."""

    value: float
    leak: float
    rounding: float

    @property
    def bound(self) -> float:
        """The largest error of an entry of a pattern."""
        return self.leak + self.rounding


def leak_bound(omega: float, spread: float, hidden: int) -> float:
    """``m e^(spread - omega)``, at most 1.

    >>> leak_bound(30.0, 5.0, 20) < 3e-10
    True
    """
    return min(1.0, hidden * math.exp(min(0.0, spread - omega)))


def rounding_bound(omega: float, size: float, d_head: int, keys: int, dtype: torch.dtype) -> float:
    """How far rounding moves an entry of a pattern, for scores whose terms sum to ``size`` in absolute value.

    A score is off by ``delta = (d_head + 2) u (size + omega)``, and an entry p by ``tanh(delta / 2)`` for it, which is
    reached at p = 1/2; the exponentials, the sum and the division add ``(keys + 4) u``.
    """
    unit = torch.finfo(dtype).eps / 2
    delta = (d_head + 2) * unit * (size + omega)
    return 1.01 * (math.tanh(delta / 2) + (keys + 4) * unit)


@dataclass(frozen=True)
class MaskedScores:
    """What the choice of omega needs to know of scores.

    No hidden score exceeds the largest seen score of its row by more than ``spread``; ``scale sum_c |q_c| |k_c| +
    |offset|`` is ``size`` at most; a row has ``keys``, of which ``hidden`` at most are; d_head is without the block.
    """

    spread: float
    size: float
    hidden: int
    keys: int
    d_head: int
    dtype: torch.dtype

    def at(self, leak: float) -> Omega:
        """The omega that leaks so much, and its bounds."""
        omega = max(0.0, self.spread + math.log(max(self.hidden, 1) / leak)) if self.hidden else 0.0
        rounding = rounding_bound(omega, self.size, self.d_head, self.keys, self.dtype)
        return Omega(omega, leak_bound(omega, self.spread, self.hidden), rounding)


def omega_within(tolerance: float | None, scores: MaskedScores) -> Omega:
    """The omega for which leak and rounding together stay within the tolerance, or are least if none is given.

    Raises `AllHeadsError` for a tolerance that the dtype cannot give (the message has the best one).

    >>> omega_within(1e-5, MaskedScores(3, 9, 20, 21, 1, torch.float32)).bound <= 1e-5
    True
    """
    if not scores.spread < math.inf or not scores.size < math.inf:
        got = f"a spread of {scores.spread} and a size of {scores.size}"
        raise AllHeadsError("finite scores", got, "Scale the input down.")
    # Rounding grows by (d_head + 2) eps for every unit of omega: the best leak is about that.
    best = scores.at((scores.d_head + 2) * torch.finfo(scores.dtype).eps)
    if tolerance is None:
        return best
    wanted = scores.at(tolerance / 2)
    if wanted.bound <= tolerance:
        return wanted
    if best.bound <= tolerance:
        return best
    raise AllHeadsError(
        f"a tolerance that {scores.dtype} can give, {best.bound:.1e} or more",
        f"{tolerance:.1e}",
        "Raise the tolerance, or use float64.",
    )


def for_scores(x: Tensor, heads: Heads, mask: Bool[Tensor, "query key"], tolerance: float | None = None) -> Omega:
    """`omega_within` for the scores that these heads give these tokens."""
    size = heads.scale * (queries(x, heads).abs() @ keys(x, heads).abs().mT)
    if heads.bias_offsets is not None:
        size[:, :, len(x) :] += heads.bias_offsets.abs()[:, None]
    scores = MaskedScores(
        spread=spread(x, heads, mask),
        size=float(size.max()),
        hidden=int((~mask).sum(-1).max()),
        keys=len(x) + heads.tokens,
        d_head=heads.W_O.shape[1],
        dtype=x.dtype,
    )
    return omega_within(tolerance, scores)


def checked_mask(mask: Bool[Tensor, "query key"], shape: tuple[int, int]) -> Bool[Tensor, "query key"]:
    """The mask, once it is boolean, of this shape and without empty rows; otherwise an error.

    >>> checked_mask(torch.eye(2).bool(), (2, 2)).shape
    torch.Size([2, 2])
    """
    if mask.dtype != torch.bool:
        raise AllHeadsError("a boolean mask", str(mask.dtype), "Write mask.bool(), True where a key is seen.")
    if tuple(mask.shape) != shape:
        remedy = "Bias tokens are the last keys; all heads share the mask."
        raise AllHeadsError(f"a mask [query key] of shape {shape}", f"shape {tuple(mask.shape)}", remedy)
    empty = (~mask.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise AllHeadsError(
            "a mask that leaves every query something to see", f"nothing in rows {empty}", "Let a token see itself."
        )
    return mask


def checked_omega(omega: float, dtype: torch.dtype) -> float:
    """The omega, once the dtype holds it with room for scores; otherwise an error.

    >>> checked_omega(30.0, torch.float32)
    30.0
    """
    if not 0 <= omega < torch.finfo(dtype).max / 4:
        raise AllHeadsError(f"an omega that {dtype} holds", f"{omega:g}", "Let `omega_within` choose it.")
    return omega


def causal(length: int) -> Bool[Tensor, "query key"]:
    """Everything up to the token itself.

    >>> causal(2).tolist()
    [[True, False], [True, True]]
    """
    return torch.ones(length, length).tril().bool()


def sliding_window(length: int, window: int) -> Bool[Tensor, "query key"]:
    """The token itself and ``window - 1`` before it.

    >>> sliding_window(3, 2).sum().item()
    5
    """
    return causal(length) & ~torch.ones(length, length).tril(-window).bool()


def beside_bias_tokens(
    x: Float[Tensor, "pos d_model"], heads: Heads, *, bias_tokens: int, omega: float
) -> Float[Tensor, "all_pos d_model"]:
    """What the heads write on x with bias positions behind it, without any mask.

    >>> x = torch.randn(4, 6, generator=torch.manual_seed(0)).double()
    >>> W = 0.3 * torch.randn(2, 6, 3).double()
    >>> heads = Heads(W_Q=W, W_K=W.flip(0), W_V=W, W_O=W.mT, mask="causal")
    >>> out = beside_bias_tokens(x, heads, bias_tokens=2, omega=80.0)
    >>> bool((out[:4] - attend(x, heads, allowed(heads, 4))).abs().max() < 1e-11), out[4:].abs().max().item() < 1e-11
    (True, True)
    """
    positions, rest = len(x) + bias_tokens, x.new_zeros(bias_tokens, x.shape[1])
    stream = torch.cat([torch.cat([x, rest]), torch.eye(positions).to(x)], 1)
    return attend(stream, in_weights(heads, allowed(heads, len(x)), omega, rest))[:, : x.shape[1]]
