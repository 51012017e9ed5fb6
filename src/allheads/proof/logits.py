"""The whole model against its twin: logits, divergences and losses. No bound is claimed for these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge

from allheads.models.bridge import share

#: Positions whose logits are held in float64 at a time.
_POSITIONS = 64


@dataclass(frozen=True)
class LogitGap:
    """How far two runs on the same tokens are apart. KL in nats, from the source to the twin, in float64."""

    largest: float
    kl: Float[Tensor, " pos"]
    agree: Tensor


def logit_gap(source: Float[Tensor, "1 pos vocab"], twin: Float[Tensor, "1 pos vocab"]) -> LogitGap:
    """Compare two sets of logits; a NaN anywhere makes the gap infinite.

    >>> gap = logit_gap(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    >>> gap.largest, gap.kl.tolist(), gap.agree.tolist()
    (0.0, [0.0, 0.0], [True, True])
    """
    # Equal infinities, as in masked parts of a vocabulary, are no difference.
    largest = float(torch.where(source == twin, 0.0, source - twin).abs().max())
    kl = []
    for mine, theirs in zip(source[0].split(_POSITIONS), twin[0].split(_POSITIONS), strict=True):
        # In float32 a log-softmax over a vocabulary has a floor near 1e-8, the size of what is measured.
        log_p, log_q = mine.double().log_softmax(-1), theirs.double().log_softmax(-1)
        kl.append(torch.where(log_p == log_q, 0.0, log_p.exp() * (log_p - log_q)).sum(-1))
    return LogitGap(
        largest if math.isfinite(largest) else math.inf,
        torch.nan_to_num(torch.cat(kl), nan=math.inf),
        source[0].argmax(-1) == twin[0].argmax(-1),
    )


def token_losses(logits: Float[Tensor, "1 pos vocab"], tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, " pos_1"]:
    """Cross-entropy of every next token, in nats."""
    return F.cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="none")


def noise_floor(source: TransformerBridge, tokens: Int[Tensor, "1 pos"]) -> float | None:
    """Largest logit difference between the source's two attention kernels, eager and sdpa: its own rounding noise.

    None where the architecture has only one.
    """
    body: Any = share(source)
    try:
        with torch.no_grad():
            eager = body(tokens).logits
            body.set_attn_implementation("sdpa")
            return float((body(tokens).logits - eager).abs().max())
    except (ValueError, AttributeError):
        return None
