"""attribute: one forward and one backward pass of the frozen twin, and every part's share of the target.

1. The twin runs with what the rule freezes, and hook points keep what embeddings, heads and neurons write.
2. The gradient of the target at each of them, times what is written there, is its effect.
3. The gradient of the target at the end of the stream, carried back through the layer that writes and no other, gives
   what is written straight into the logits.
4. Every cut of the stream has to sum to the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from allheads.attribution.attribution import Attribution
from allheads.attribution.constants import constants, layers_of
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import ULPS, differentiable
from allheads.attribution.frozen_twin import FrozenParts
from allheads.attribution.metric import Metric, Target
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, Rule
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.prompt import Texts
from allheads.twin.twin import TwinBridge


def attribute(
    twin: TwinBridge, tokens: Texts, target: Target, *, rule: str | Rule = DEFAULT, position: int = -1
) -> Attribution:
    r"""How much every embedding, head and neuron contributes to a target, at every position.

    With the rule's parts frozen, the target is ``sum_p G_p . x_p + c`` for the stream x at any cut, where G is its
    gradient there. A part that writes a, through weights W_O, contributes ``a W_O . G``: exactly, not to first order.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        target: a token (text or id), a pair (for, against), weights ``[d_vocab]``, or a function of the logits
            ``[d_vocab]``. Where that, or the end of the network (a soft cap), is not linear, the result has an
            ``intercept``: what linear contributions cannot reach.
        rule: a name out of `allheads.attribution.rules`.
        position: where the target's logits are read; the last by default.

    Returns:
        An `Attribution`. For complete rules ``completeness_error`` is rounding: below 1e-5 in float32 and 1e-12 in
        float64, at every cut. It knows what was asked: ``found.graph()``, ``found.confirm()``, ``found.by_source()``
        and ``found.relative_to(means)`` go on from there.

    Raises:
        AllHeadsError: the prompt, target, position or rule cannot be read; gradients are switched off by
            `torch.inference_mode`; or this architecture has parts that the rule cannot freeze.

    >>> import allheads as ah
    >>> found = ah.attribute(twin, "When Mary and John", (" Mary", " John"))  # doctest: +SKIP
    >>> found.top(3)  # doctest: +SKIP
    """
    return answer(Question.of(twin, tokens, target, rule, position))


def answer(question: Question, means: Means | None = None) -> Attribution:
    """The attribution that answers a question, relative to ``means`` if there are any."""
    (found,) = answers([question], means)
    return found


def answers(questions: Sequence[Question], means: Means | None = None) -> Iterator[Attribution]:
    """One forward pass, and a backward pass for each question; these differ in their metric only.

    The twin is frozen until the last answer is taken.
    """
    first = questions[0]
    twin, ids, rule = first.twin, first.ids, first.rule
    points = tuple(dict.fromkeys(point for question in questions for point in question.metric.hook_points))
    with differentiable(first) as parts:
        cache = ForwardCache(twin, points)
        with cache.recording():
            logits = twin(ids)
        values = [question.metric.of(logits, cache.activations) for question in questions]
        direct = _direct_effects(cache, questions, values, means)
        for question, value, straight in zip(questions, values, direct, strict=True):
            effects = _effects(cache, parts, value, question.metric, means)
            result = Attribution(question, float(value.detach()), 0.0, **effects, **straight, means=means)
            yield _checked(result, logits.dtype) if rule.complete else result


def by_source(question: Question) -> Tensor:
    """What each ordinary head's value carried from each source: pattern times ``v . G``.

    Raises `AllHeadsError` where heads do not write ``pattern @ v``.
    """
    twin, layers = question.twin, range(len(question.twin.layers))
    patterns, values = ([f"blocks.{layer}.attn.hook_{name}" for layer in layers] for name in ("pattern", "v"))
    points = (*question.metric.hook_points, *patterns, *values)
    with differentiable(question):
        cache = ForwardCache(twin, points)
        with cache.recording():
            value = question.metric.of(twin(question.ids), cache.activations)
        gradients = torch.autograd.grad(value, [cache.activations[name] for name in cache.heads])
    shares = []
    for gradient, *names in zip(gradients, cache.heads, patterns, values, strict=True):
        z, pattern, v = (cache.activations[name].detach()[0] for name in names)
        v = v.repeat_interleave(max(1, z.shape[1] // v.shape[1]), 1)
        # Patterns may be shown in float32.
        carried = (
            torch.einsum("hds,she->dhe", pattern.to(v), v) if v.shape == z.shape else torch.full_like(z, torch.inf)
        )
        if not (carried - z).norm() <= ULPS * torch.finfo(pattern.dtype).eps * z.norm():
            raise AllHeadsError(
                f"heads that write their pattern times {names[2]}",
                f"{twin.cfg.architecture}, whose {names[0]} is something else",
                "What it carried cannot be split by source.",
            )
        shares.append(pattern.to(v) * torch.einsum("dhe,she->hds", gradient[0], v))
    return torch.stack(shares)


def _effects(
    cache: ForwardCache, parts: FrozenParts, value: Tensor, metric: Metric, means: Means | None
) -> dict[str, Any]:
    """Gradient times what is written, everywhere: embeddings, the stream, heads, neurons, constants."""
    fixed = constants(parts)
    streams = cache.streams if metric.layer is None else cache.streams[: metric.layer + 1]
    names = [*cache.embeddings, *streams, *cache.heads, *cache.neurons]
    tensors = [cache.activations[name] for name in names] + [tensor for _, tensor in fixed.values()]
    gradients = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
    gradient = dict(zip([*names, *fixed], gradients, strict=True))

    def effect(name: str, written: Tensor) -> Tensor:
        found = gradient[name]
        return torch.zeros_like(written) if found is None else found.detach()[0] * written

    absolute = {name: effect(name, cache.activations[name].detach()[0]) for name in (*cache.embeddings, *streams)}
    relative = {name: effect(name, _written(cache, name, means)) for name in names if name not in streams}
    layers = layers_of(cache, {name: pair for name, pair in fixed.items() if gradient[name] is not None})
    values = {name: (float((gradient[name] * fixed[name][1].detach()).sum()), layer) for name, layer in layers.items()}
    if EMBEDDINGS[2] in cache.embeddings:
        values[EMBEDDINGS[2]] = (float(relative[EMBEDDINGS[2]].sum()), -1)
    of_means = sum(float(absolute[name].sum()) - float(relative[name].sum()) for name in cache.embeddings)
    return {
        "embeddings": relative[EMBEDDINGS[0]].sum(-1),
        "positions": relative[EMBEDDINGS[1]].sum(-1) if EMBEDDINGS[1] in cache.embeddings else None,
        "constants": values,
        "heads": torch.stack([relative[name].sum(-1).T for name in cache.heads]),
        "neurons": torch.stack([relative[name] for name in cache.neurons]),
        "stream": torch.stack([absolute[name].sum(-1) for name in streams]),
        "baseline": of_means if means else 0.0,
    }


def _written(cache: ForwardCache, name: str, means: Means | None) -> Tensor:
    """What is written at a hook point, less its mean."""
    written = cache.activations[name].detach()[0]
    if means is None:
        return written
    mean = means.of(name).to(written)
    if mean.shape not in (written.shape, written.shape[1:]):
        raise AllHeadsError(
            f"means {tuple(written.shape[1:])}, or by position {tuple(written.shape)}, at {name}",
            str(tuple(mean.shape)),
            "Measure them with ah.corpus.means on this twin, by position on prompts of one length.",
        )
    return written - mean


def _direct_effects(
    cache: ForwardCache, questions: Sequence[Question], values: Sequence[Tensor], means: Means | None
) -> list[dict[str, Any]]:
    """What heads and neurons write straight into each target.

    Where every layer adds to the stream, the gradient at its end is that at the end of each layer, and is carried back
    through what the layer adds: for targets at different positions in one go, because nothing on this way leaves its
    position. Norms after the sum change that, and so do targets inside the network: then it runs once more, with
    everything that heads and neurons write cut off from what they read.
    """
    metrics = [question.metric for question in questions]
    if len({metric.position for metric in metrics}) < len(metrics):
        pairs = zip(questions, values, strict=True)
        return [_direct_effects(cache, [question], [value], means)[0] for question, value in pairs]
    names, source = [*cache.heads, *cache.neurons], cache
    if all(metric.layer is None and _adds_up(cache, metric.position) for metric in metrics):
        ends = [torch.autograd.grad(value, [cache.activations[cache.end]], retain_graph=True)[0] for value in values]
        end = torch.stack(ends).sum(0)
        gradients: list[Tensor | None] = [
            _carried_back(cache, name, added, end) for name, added in zip(names, cache.added, strict=True)
        ]
    else:
        source = ForwardCache(cache.twin, cache.extra, cut=True)
        with source.recording():
            logits = cache.twin(questions[0].ids)
        total = torch.stack([metric.of(logits, source.activations) for metric in metrics]).sum()
        gradients = list(torch.autograd.grad(total, [source.leaves[name] for name in names], allow_unused=True))
    return [_at_position(source, dict(zip(names, gradients, strict=True)), m.position, means) for m in metrics]


def _at_position(
    cache: ForwardCache, gradients: dict[str, Tensor | None], position: int, means: Means | None
) -> dict[str, Any]:
    """Gradient times what is written, at one position: heads, then neurons."""
    parts = []
    for name, gradient in gradients.items():
        written = _written(cache, name, means)[position]
        parts.append(torch.zeros_like(written) if gradient is None else gradient[0, position] * written)
    count = len(cache.heads)
    heads = torch.stack([part.sum(-1) for part in parts[:count]])
    return {"heads_direct": heads.detach(), "neurons_direct": torch.stack(parts[count:]).detach()}


def _carried_back(cache: ForwardCache, name: str, added: str, gradient: Tensor) -> Tensor:
    """The gradient at the end of the stream, carried back through what one layer's heads or neurons add."""
    tensors = cache.activations
    (carried,) = torch.autograd.grad(tensors[added], [tensors[name]], grad_outputs=gradient, retain_graph=True)
    return carried


def _adds_up(cache: ForwardCache, position: int) -> bool:
    """Is the end of the stream its beginning plus what attention and MLPs add?"""
    first, end = (cache.activations[name][0, position].detach() for name in (cache.streams[0], cache.end))
    added = [cache.activations[name][0, position].detach() for name in cache.added]
    size = sum(float(part.abs().max()) for part in added)
    return bool((sum(added, first) - end).abs().max() <= ULPS * torch.finfo(end.dtype).eps * size)


def _checked(result: Attribution, dtype: torch.dtype) -> Attribution:
    """Give the end of the network, where it is not linear, its intercept; then every cut has to reach the target.

    Raises `AllHeadsError` if one does not: the architecture has something that the rule does not freeze.
    """
    close = ULPS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    last = len(result.stream) - 1
    gap = result.target_value - result.cut(last)
    if abs(gap) > close * max(abs(result.target_value), float(result.stream[last].abs().sum())):
        result = replace(result, intercept=gap)
    if result.completeness_error > close and dtype in (torch.float32, torch.float64):
        raise AllHeadsError(
            f"a network that is linear under rule {result.rule.name!r}",
            f"{result.question.twin.cfg.architecture}, whose parts miss the whole by {result.completeness_error:.0e}"
            " of their size",
            "Something in its layers is not frozen: use rule='gradient'.",
        )
    return result
