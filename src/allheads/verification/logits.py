"""The whole model against its twin: logits, divergences and losses. No bound is claimed for these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from allheads.models.compat import use_attention_kernel
from allheads.models.observe import run_network

#: How many times the noise of its own rounding `closed` may be away, and the roundings that a bank leaves at the least.
_NOISES, _LEAST = 4.0, 4
#: Positions whose logits are held in float64 at a time.
_POSITIONS = 64


@dataclass(frozen=True)
class LogitGap:
    """How far two runs on the same tokens are apart. KL in nats, from the source to the twin, in float64."""

    largest: float
    kl: Float[Tensor, " pos"]
    agree: Tensor


def logit_gap(source: Float[Tensor, "*pos vocab"], twin: Float[Tensor, "*pos vocab"]) -> LogitGap:
    """Compare two sets of logits; a NaN anywhere makes the gap infinite.

    >>> gap = logit_gap(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    >>> gap.largest, gap.kl.tolist(), gap.agree.tolist()
    (0.0, [0.0, 0.0], [True, True])
    """
    if torch.equal(source, twin):
        positions = source.argmax(-1).flatten()
        return LogitGap(
            0.0, torch.zeros_like(positions, dtype=torch.float64), torch.ones_like(positions, dtype=torch.bool)
        )
    largest, kl = largest_gap(source, twin), []
    mine_of, theirs_of = (logits.flatten(0, -2).split(_POSITIONS) for logits in (source, twin))
    for mine, theirs in zip(mine_of, theirs_of, strict=True):
        # In float32 a log-softmax over a vocabulary has a floor near 1e-8, the size of what is measured.
        log_p, log_q = mine.double().log_softmax(-1), theirs.double().log_softmax(-1)
        kl.append(torch.where(log_p == log_q, 0.0, log_p.exp() * (log_p - log_q)).sum(-1))
    agree = (source.argmax(-1) == twin.argmax(-1)).flatten()
    return LogitGap(largest, torch.nan_to_num(torch.cat(kl), nan=math.inf), agree)


def hidden_gap(source: Float[Tensor, "*pos d_model"], twin: Float[Tensor, "*pos d_model"]) -> LogitGap:
    """Compare hidden states, of which only the difference has a meaning."""
    nothing = torch.full((1,), math.nan, dtype=torch.float64)
    return LogitGap(largest_gap(source, twin), nothing, nothing)


def largest_gap(source: Tensor, twin: Tensor) -> float:
    """Largest absolute difference; equal infinities, as in masked parts of a vocabulary, are none."""
    largest = float(torch.where(source == twin, 0.0, source - twin).abs().max())
    return largest if math.isfinite(largest) else math.inf


def token_losses(logits: Float[Tensor, "1 pos vocab"], tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, " pos_1"]:
    """Cross-entropy of every next token, in nats."""
    return F.cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="none")


def noise_floor(body: Any, arguments: Mapping[str, Tensor]) -> float | None:
    """Largest difference between the source's two attention kernels, eager and sdpa: its own rounding noise.

    ``body`` is a copy of the source's network, which is left with the second. None where the architecture has only one.
    """
    try:
        with torch.no_grad():
            eager = run_network(body, arguments)
            use_attention_kernel(body, "sdpa")
            return float((run_network(body, arguments) - eager).abs().max())
    except (ValueError, AttributeError, RuntimeError):  # some networks cannot run without their bridge
        return None


def closed_limit(noise: float | None, largest: float, banks: int, dtype: torch.dtype) -> float:
    """How far `closed` may be from the source, where the largest output is ``largest``.

    Both compute the same numbers, in another order at most: within a few times the source's own noise, or, where no
    second kernel shows it, one rounding of the output for each bank.
    """
    rounding = torch.finfo(dtype).eps * largest
    return _NOISES * max(noise or 0.0, rounding * (_LEAST if noise else max(_LEAST, banks)))
