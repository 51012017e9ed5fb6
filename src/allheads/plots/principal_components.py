"""Principal components: the directions in which points differ most."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def principal_components(
    points: Float[Tensor, "*shape d_model"], fitted: Float[Tensor, "*fitted d_model"] | None = None
) -> tuple[Float[Tensor, "*shape 3"], Float[Tensor, "3"]]:
    """Points in the three directions of their largest variance, and the share of the variance in each, in float64.

    The mean and the directions are those of ``fitted``, of all points unless given. The sign of a direction is free:
    its largest entry is positive.

    >>> projected, shares = principal_components(torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 0.5, 0], [0, -0.5, 0]]))
    >>> projected[:, 0].tolist(), shares.tolist()
    ([1.0, -1.0, 0.0, 0.0], [0.8, 0.2, 0.0])
    """
    sample = (points if fitted is None else fitted).double().flatten(0, -2)
    mean = sample.mean(0)
    variances, directions = torch.linalg.eigh((sample - mean).T @ (sample - mean))
    directions = directions.flip(1)[:, :3]
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    return (points.double() - mean) @ directions, variances.flip(0)[:3] / variances.sum().clamp_min(1e-300)
