"""Keep the k parts that come first, write the mean for all others, and see how much of the answer is left.

Means are over the prompts of a task, which have one length and form, by position: what all prompts share stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allheads import TwinBridge
from allheads.corpus import Means
from allheads_labs.faithfulness.methods import Case, Scores, hook_points

#: Rows of a batch.
_ROWS = 6


def rungs(count: int) -> list[int]:
    """How many parts are kept: powers of four, and all.

    >>> rungs(20)
    [1, 4, 16, 20]
    """
    return [4**power for power in range(math.ceil(math.log(count, 4)))] + [count]


def recovered(twin: TwinBridge, case: Case, scores: Scores, by: str) -> Float[Tensor, " rung"]:
    """The share of the target, between nothing and all kept, that the first k parts keep."""
    heads, neurons = scores.heads, scores.neurons
    flat = torch.cat([heads.flatten(), neurons.flatten()])
    flat = flat.abs() if by == "size" else flat
    order = torch.empty_like(flat, dtype=torch.long)
    order[flat.argsort(descending=True, stable=True)] = torch.arange(len(flat), device=flat.device)
    ks = [0, *rungs(len(flat))]
    kept = [order < k for k in ks]
    values = []
    for start in range(0, len(kept), _ROWS):
        rows = torch.stack(kept[start : start + _ROWS])
        split = rows.split([heads.numel(), neurons.numel()], 1)
        with (
            twin.hooks(
                fwd_hooks=_hooks(twin, split[0].view(-1, *heads.shape), split[1].view(-1, *neurons.shape), case.means)
            ),
            torch.no_grad(),
        ):
            logits = twin(case.ids.expand(len(rows), -1))[:, -1].double()
        values.append(logits @ case.weights.to(logits))
    targets = torch.cat(values)
    return (targets[1:] - targets[0]) / (targets[-1] - targets[0])


def area(curve: Float[Tensor, " rung"], ks: list[int], *, overshoot: bool = False) -> float:
    """The area under a curve in log k, from 1 to all, as a share of the whole; 0.5 for a straight line.

    Values are clipped to [0, 1]; with ``overshoot`` too much counts like too little, as ``1 - |1 - r|``.
    """
    clipped = ((1.0 - (1.0 - curve).abs()) if overshoot else curve).clamp(0.0, 1.0)
    x = torch.tensor(ks, dtype=torch.float64).log()
    return float(torch.trapezoid(clipped.double().cpu(), x) / (x[-1] - x[0]))


def _hooks(
    twin: TwinBridge,
    heads: Bool[Tensor, "row layer head pos"],
    neurons: Bool[Tensor, "row layer pos d_mlp"],
    means: Means,
) -> list[tuple[str, Callable[..., Tensor]]]:
    head_points, neuron_points = hook_points(twin)
    keep = {name: heads[:, layer].transpose(1, 2)[..., None] for layer, name in enumerate(head_points)}
    keep |= {name: neurons[:, layer] for layer, name in enumerate(neuron_points)}

    def writer(name: str) -> Callable[..., Tensor]:
        def write(value: Tensor, hook: object) -> Tensor:
            return torch.where(keep[name], value, means.of(name).to(value))

        return write

    return [(name, writer(name)) for name in keep]
