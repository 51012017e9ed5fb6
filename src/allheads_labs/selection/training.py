"""Training several learners at once: one for each number of sequences that it may see, from the same start.

They are one stack: every parameter has a dimension in front, and `torch.func.vmap` makes one program of all. What each
learns is what it would learn alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from allheads_labs.kit.fitting import Recipe, cosine, fit, seeded
from allheads_labs.selection.learners import Kind, learner
from allheads_labs.selection.targets import Kind as Target
from allheads_labs.selection.targets import Sequences

ROWS, DECAY = 64, 0.1
#: For all learners alike; of 3e-3, 4e-3, 5e-3 and 1e-2, tried on other sequences, what suits most of them.
RATES: dict[Target, float] = {"relative": 1e-2, "mixed": 4e-3, "anisotropic": 4e-3}
#: What is added to the targets that are learnt from, in their standard deviations.
NOISE = 0.1


def train(kind: Kind, known: Sequences, sizes: Sequence[int], *, steps: int, seed: int) -> list[nn.Module]:
    """A trained learner for each size, which has seen so many of the first sequences, in evaluation mode."""
    length, d_token = known.tokens.shape[1:]
    with seeded(seed):
        made = [learner(kind, d_token, length, placed=known.kind != "relative")]
    made += [copy.deepcopy(made[0]) for _ in sizes[1:]]
    parameters, _ = stack_module_state(made)
    draw = torch.Generator().manual_seed(seed)
    targets = known.target + NOISE * torch.randn(len(known.target), generator=draw)
    limits = torch.tensor(sizes)[:, None]
    program = vmap(lambda weights, tokens: functional_call(made[0], weights, (tokens,)))

    def loss(_: int) -> Tensor:
        rows = (torch.rand(len(sizes), ROWS, generator=draw) * limits).long()
        numbers = program(parameters, known.tokens[rows])
        return (numbers - targets[rows]).square().mean(1).sum()

    fit(list(parameters.values()), loss, Recipe(steps, RATES[known.kind], cosine, DECAY), clip_each)
    with torch.no_grad():
        for at, one in enumerate(made):
            for name, parameter in one.named_parameters():
                parameter.copy_(parameters[name][at])
    return [one.eval() for one in made]


@torch.no_grad()
def clip_each(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients of a stack clipped at norm 1, each learner's by itself."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (1 / (norms + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


@torch.no_grad()
def error(one: nn.Module, test: Sequences) -> float:
    """The mean squared error against targets without noise, as a share of their variance."""
    numbers: Float[Tensor, " n"] = one(test.tokens)
    return float((numbers - test.target).square().mean() / test.target.var(correction=0))
