"""Ways to score heads and neurons at positions: every rule, and what the field uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from allheads import RULES, TwinBridge, attribute
from allheads.corpus import Means
from allheads.twin.capture import captured, capturing

#: Where the stream begins.
EMBEDDING = "embed.hook_out"
#: Steps from the mean embedding to the embedding.
_STEPS = 8


@dataclass(frozen=True)
class Scores:
    """What each part is said to be worth."""

    heads: Float[Tensor, "layer head pos"]
    neurons: Float[Tensor, "layer pos d_mlp"]


@dataclass(frozen=True)
class Case:
    """A prompt as ids, one that asks the opposite, and what is asked."""

    ids: Tensor
    corrupt: Tensor
    weights: Float[Tensor, " d_vocab"]
    means: Means


def hook_points(twin: TwinBridge) -> tuple[list[str], list[str]]:
    """Where ordinary heads and neurons write, layer by layer."""
    layers = range(len(twin.layers))
    return [f"blocks.{n}.attn.hook_z" for n in layers], [f"blocks.{n}.mlp.hook_post" for n in layers]


def by_rule(rule: str) -> Callable[[TwinBridge, Case], Scores]:
    """`ah.attribute` under a rule, relative to the means that ablation writes."""

    def score(twin: TwinBridge, case: Case) -> Scores:
        attribution = attribute(twin, case.ids, case.weights, rule=rule).relative_to(case.means)
        return Scores(attribution.heads, attribution.neurons)

    return score


def patching(twin: TwinBridge, case: Case) -> Scores:
    """TransformerLens' attribution patching: ``(a - a_corrupt) . gradient`` on the corrupt prompt."""
    names = list(chain(*hook_points(twin)))
    begin = [(EMBEDDING, lambda value, hook: value.detach().requires_grad_())]
    with torch.enable_grad(), twin.hooks(fwd_hooks=begin):
        # The point furthest up has no gradient there, so that is the embedding.
        corrupt = cache_activation_and_gradient(
            twin,
            case.corrupt,
            lambda logits: logits[0, -1] @ case.weights.to(logits),
            names_filter=[EMBEDDING, *names],
        )
        clean = twin.run_with_cache(case.ids, names_filter=names)[1]
    parts = {name: corrupt.gradients[name] * (clean[name].detach() - corrupt.activations[name]) for name in names}
    return _stacked(twin, parts)


def integrated(twin: TwinBridge, case: Case) -> Scores:
    """Integrated gradients: the mean gradient on the way from the mean embedding, times the distance from the means."""
    names = list(chain(*hook_points(twin)))
    steps = (torch.arange(_STEPS, dtype=torch.float64, device=case.ids.device) + 0.5) / _STEPS
    mean = case.means.of(EMBEDDING)

    def between(value: Tensor, hook: object) -> Tensor:
        start = mean.to(value)
        return start + steps.to(value)[:, None, None] * (value.detach() - start)

    clean = captured(twin, case.ids, names)
    begin = [(EMBEDDING, lambda value, hook: between(value, hook).requires_grad_())]
    with torch.enable_grad(), twin.hooks(fwd_hooks=begin), capturing(twin, names) as activations:
        logits = twin(case.ids.expand(_STEPS, -1))[:, -1]
        grads = torch.autograd.grad((logits @ case.weights.to(logits)).mean(), [activations[name] for name in names])
    parts = {
        name: grad.sum(0, keepdim=True) * (clean[name] - case.means.of(name).to(grad))
        for name, grad in zip(names, grads, strict=True)
    }
    return _stacked(twin, parts)


def chance(twin: TwinBridge, case: Case) -> Scores:
    """Normal numbers, the same for the same prompt."""
    generator = torch.Generator().manual_seed(int(case.ids.sum()))
    layers, pos = len(twin.banks), case.ids.shape[1]
    heads = torch.randn(layers, twin.cfg.n_heads, pos, generator=generator)
    return Scores(heads, torch.randn(layers, pos, twin.banks[0].d_mlp, generator=generator))


#: All methods by name.
METHODS: dict[str, Callable[[TwinBridge, Case], Scores]] = {
    **{rule: by_rule(rule) for rule in RULES},
    "patching": patching,
    "integrated": integrated,
    "chance": chance,
}


def _stacked(twin: TwinBridge, parts: dict[str, Tensor]) -> Scores:
    head_points, neuron_points = hook_points(twin)
    heads = torch.stack([parts[name][0].detach().sum(-1).T for name in head_points])
    return Scores(heads, torch.stack([parts[name][0].detach() for name in neuron_points]))
