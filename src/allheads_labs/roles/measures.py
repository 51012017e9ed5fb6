"""How clear the roles of heads are: the mutual information between a head and an attribute, read in three ways.

- *Looks*: draw a head, then one of the tokens of the right entity by the head's weights at the question. How many bits
  does the attribute of the token say about the head? 0 if all heads look alike, 2 if each of four heads has its own.
- *Carries*: for every head and attribute, how many bits the head's output says about the value, at least; a role is an
  attribute that a head carries more of than others do.
- *Breaks*: how much of the accuracy on an attribute is lost without a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from allheads_labs.roles.model import HeadActivations, Reader
from allheads_labs.roles.task import ATTRIBUTES, VALUES, AttributeBatch

#: Less than this in all, and the shares of heads are noise.
FLOOR = {"carries": 0.1, "breaks": 0.05}
#: Added to the covariance of outputs, as a share of its mean variance.
_RIDGE = 1e-2


def mutual_information(joint: Float[Tensor, "head attribute"]) -> float:
    r"""Bits :math:`\sum_{ha} p_{ha} \log_2 \frac{p_{ha}}{p_h p_a}` of non-negative weights, scaled to sum to 1.

    Between 0 and :math:`\log_2` of the smaller side.

    >>> mutual_information(torch.eye(4)), mutual_information(torch.ones(4, 4))
    (2.0, 0.0)
    """
    share = joint.double() / joint.double().sum()
    apart = share.sum(1, keepdim=True) * share.sum(0, keepdim=True)
    bits = torch.where(share > 0, share * (share / apart.clamp_min(1e-300)).clamp_min(1e-300).log2(), 0.0)
    return max(0.0, float(bits.sum()))


def looks(patterns: Float[Tensor, "batch head token"], kinds: Int[Tensor, "batch token"]) -> Tensor:
    """The mean weight that each head gives to the tokens of the right entity ``[head attribute]``, at the question."""
    weights = torch.einsum("bht,bta->ha", patterns.double(), F.one_hot(kinds, ATTRIBUTES + 1).double())
    return weights[:, :ATTRIBUTES] / len(patterns)


def carries(outputs: Float[Tensor, "batch head d_head"], answers: Int[Tensor, "batch attribute"]) -> Tensor:
    r"""Bits about each attribute in each head's output ``[head attribute]``, at least.

    :math:`\log_2 8` minus the cross-entropy, on the second half of the sequences, of a Gaussian classifier (class
    means, one covariance) made from the first half: a lower bound of the mutual information, 0 where it is negative.
    """
    read, half = outputs.double(), len(outputs) // 2
    bits = torch.zeros(outputs.shape[1], answers.shape[1], dtype=torch.float64)
    for attribute in range(answers.shape[1]):
        member = F.one_hot(answers[:, attribute], VALUES).double()
        means = torch.einsum("bv,bhd->hvd", member[:half], read[:half]) / member[:half].sum(0).clamp_min(1)[:, None]
        rest = read[:half] - torch.einsum("bv,hvd->bhd", member[:half], means)
        spread = torch.einsum("bhd,bhe->hde", rest, rest) / half
        size = spread.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        inverse = torch.linalg.inv(spread + (_RIDGE * size + 1e-12) * torch.eye(spread.shape[-1]))
        gaps = read[half:, :, None] - means
        scores = -0.5 * torch.einsum("bhvd,hde,bhve->bhv", gaps, inverse, gaps)
        chosen = scores.log_softmax(-1).gather(-1, answers[half:, None, attribute, None].expand(-1, len(means), 1))
        bits[:, attribute] = math.log2(VALUES) + chosen.mean((0, 2)) / math.log(2)
    return bits.clamp_min(0)


def breaks(reader: Reader, batch: AttributeBatch) -> Tensor:
    """How much of each attribute's accuracy is lost without each head ``[head attribute]``; gains count as 0."""
    with torch.no_grad():
        whole = accuracies(reader(batch.tokens), batch)
        lost = []
        for head in range(reader.heads * len(reader.body.transformer.h)):
            with reader.ablated(head):
                lost.append(whole - accuracies(reader(batch.tokens), batch))
    return torch.stack(lost).clamp_min(0)


def accuracies(logits: Float[Tensor, "batch attribute value"], batch: AttributeBatch) -> Float[Tensor, " attribute"]:
    """The share of right answers for each attribute."""
    return (logits.argmax(-1) == batch.answers).double().mean(0)


def clarity(name: str, shares: Float[Tensor, "head attribute"]) -> float | None:
    """The mutual information of shares in bits; None where there is too little to share, or only one head."""
    if len(shares) == 1 or float(shares.sum()) <= FLOOR.get(name, 0.0):
        return None
    return mutual_information(shares)


def summary(activations: HeadActivations, batch: AttributeBatch) -> dict[str, object]:
    """All that is measured at a point of training, as JSON."""
    looked, carried = looks(activations.patterns, batch.kinds), carries(activations.outputs, batch.answers)
    return {
        "accuracy": accuracies(activations.logits, batch).tolist(),
        "looks": looked.tolist(),
        "carries": carried.tolist(),
        "clarity": {"looks": clarity("looks", looked), "carries": clarity("carries", carried)},
        # The share of a head's weight that is on the right entity at all; 0.25 if it looks everywhere.
        "found": float(looked.sum(1).mean()),
    }


def halfway(steps: Sequence[int], values: Sequence[float]) -> float | None:
    """The step from which on a series stays above the middle between its start and its end; None if it does not rise.

    From which on: a reading that is large for a while and falls again has not arrived. Between two points the logarithm
    of the step is interpolated.

    >>> round(halfway([10, 100, 1000, 10000], [0.0, 0.8, 0.0, 1.0]))
    3162
    """
    middle = (values[0] + values[-1]) / 2
    if values[-1] <= values[0]:
        return None
    at = max(at for at in range(len(values)) if values[at] < middle)
    share = (middle - values[at]) / (values[at + 1] - values[at])
    return math.exp(math.log(steps[at]) * (1 - share) + math.log(steps[at + 1]) * share)
