"""What HeadVis plots of a head over many windows, and what takes its place for a neuron.

A window has its first position; means are over all positions of all windows, and no window is weighted. With pattern p,
query q and key k of a head:

    self_attention_score    mean of p[q, q]
    prev_token_score        mean over q > 0 of p[q, q - 1]
    pattern_entropy         mean of -sum_k p[q, k] log p[q, k], in nats
    qk_distance             mean of sum_k p[q, k] |q - k|, and its variance under p
    induction_score         mean over q whose token came before, at j < q: sum_j p[q, j + 1], less what is below 0.01

A neuron's heads attend to the token itself and to bias tokens, which have no position: with its openness o(q) as
p[q, q] and 1 - o(q) on all bias tokens together, distances and what looks at other tokens are 0. Left are the
self-attention score, which is the mean openness, its standard deviation, and the entropy of o and 1 - o.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allheads.corpus.head_roles import ROLES, destinations, role_masks

#: Attention below this is no induction.
INDUCTION = 0.01


@dataclass(frozen=True)
class Windows:
    """What is real of a batch of windows, and which sources count for induction. Windows of one token do not count."""

    real: Bool[Tensor, "batch pos"]
    induction: Bool[Tensor, "batch pos pos"]
    repeated: int

    @classmethod
    def of(cls, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]) -> Windows:
        """Of windows that are padded on the right."""
        real = real & (real.sum(1, keepdim=True) > 1)
        masks, at = role_masks(tokens, real), ROLES.index("induction")
        return cls(real, masks[at], int(destinations(masks)[at]))

    @property
    def counts(self) -> Float[Tensor, " sum"]:
        """Over how many positions the sums of `pattern_sums` go."""
        every, windows = int(self.real.sum()), int(self.real.any(1).sum())
        return torch.tensor([every, every - windows, every, every, every, self.repeated]).double()


def pattern_sums(pattern: Float[Tensor, "batch head pos pos"], windows: Windows) -> Float[Tensor, "sum head"]:
    """Sums over positions, in the order of the table above; squared distances in the place of their variance."""
    p = pattern.double().masked_fill(~windows.real[:, None, :, None], 0.0)
    position = torch.arange(p.shape[-1], device=p.device)
    distance = (position[:, None] - position).abs().double()
    induction = p.masked_fill(~windows.induction[:, None] | (p < INDUCTION), 0.0)
    sums = [
        p.diagonal(dim1=-2, dim2=-1).sum((0, 2)),
        p.diagonal(-1, dim1=-2, dim2=-1).sum((0, 2)),
        -torch.xlogy(p, p).sum((0, 2, 3)),
        (p * distance).sum((0, 2, 3)),
        (p * distance.square()).sum((0, 2, 3)),
        induction.sum((0, 2, 3)),
    ]
    return torch.stack(sums)


def pattern_metrics(sums: Float[Tensor, "sum head"], counts: Float[Tensor, " sum"]) -> dict[str, Tensor]:
    """Means by the names of `HEADS`; NaN where no position counts."""
    own, previous, entropy, distance, square, induction = sums / counts[:, None]
    values = (own, previous, entropy, distance, square - distance.square(), induction)
    return dict(zip(HEADS.descriptions, values, strict=True))


def openness_sums(openness: Float[Tensor, "batch neuron pos"], windows: Windows) -> Float[Tensor, "sum neuron"]:
    """Sums over positions: openness, its square, and its entropy."""
    o = openness.double().movedim(1, 2)[windows.real]
    entropy = -torch.xlogy(o, o) - torch.xlogy(1 - o, 1 - o)
    return torch.stack([o.sum(0), o.square().sum(0), entropy.sum(0)])


def openness_metrics(sums: Float[Tensor, "sum neuron"], counts: Float[Tensor, " sum"]) -> dict[str, Tensor]:
    """Means by the names of `NEURONS`."""
    mean, square, entropy = sums / counts[0]
    values = (mean, (square - mean.square()).clamp_min(0).sqrt(), entropy)
    return dict(zip(NEURONS.descriptions, values, strict=True))


@dataclass(frozen=True)
class Measure:
    """What is plotted: metrics with what they mean, the sums of a batch, and what these come to in the end."""

    descriptions: Mapping[str, str]
    sums: Callable[[Tensor, Windows], Tensor]
    metrics: Callable[[Tensor, Tensor], dict[str, Tensor]]


HEADS = Measure(
    {
        "self_attention_score": "Mean attention of a token to itself.",
        "prev_token_score": "Mean attention of a token to the one before.",
        "pattern_entropy": "Mean entropy of the attention of a token, in nats: high is spread, low is on few tokens.",
        "qk_distance": "Mean distance to the tokens that are attended to, weighted by attention.",
        "qk_distance_variance": "Variance of that distance.",
        "induction_score": "Mean attention of a repeated token to what came after it before.",
    },
    pattern_sums,
    pattern_metrics,
)
NEURONS = Measure(
    {
        "self_attention_score": "Mean openness: the attention of the neuron's gate to the token itself.",
        "openness_std": "Standard deviation of the openness over tokens.",
        "pattern_entropy": "Mean entropy of the openness and the rest, in nats: high is half open, low open or closed.",
    },
    openness_sums,
    openness_metrics,
)
