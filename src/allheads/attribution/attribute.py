"""attribute: one forward and one backward pass of the frozen twin, and every part's share of the target.

1. The twin runs with what the rule freezes, and hook points keep what embeddings, heads and neurons write.
2. The gradient of the target at each of them, times what is written there, is its effect.
3. The same gradient along the stream alone, which goes back into no head and no neuron, gives what is written straight
   into the target.
4. Every cut of the stream has to sum to the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from allheads.attribution.attribution import Attribution
from allheads.attribution.constants import ULPS, constants, layers_of, unnamed
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable, require_linear
from allheads.attribution.frozen_twin import FrozenParts
from allheads.attribution.metric import Metric, Target
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, Rule
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.models.observe import Inputs
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.prompt import Texts
from allheads.twin.sites import Site, sites
from allheads.twin.twin import TwinBridge


def attribute(
    twin: TwinBridge, tokens: Texts | Inputs, target: Target, *, rule: str | Rule = DEFAULT, position: int = -1
) -> Attribution:
    r"""How much every embedding, head and neuron contributes to a target, at every position.

    With the rule's parts frozen, the target is ``sum_p G_p . x_p + c`` for the stream x at any cut, where G is its
    gradient there. A part that writes a, through weights W_O, contributes ``a W_O . G``: exactly, not to first order.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``; or arguments of the twin by name: ``{"input": ids, "decoder_input":
            ids}`` for an encoder-decoder, ``{"input": image}`` for a model that sees.
        target: a token (text or id) or a class, a pair (for, against), weights over the outputs, or a function of these
            at one position: logits ``[d_vocab]``, or a hidden state ``[d_model]`` where there is no head. Where that,
            or the end of the network (a soft cap), is not linear, the result has an ``intercept``: what linear
            contributions cannot reach.
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
    >>> found = ah.attribute(twin, "When Mary and John", (" Mary", " John"))
    >>> abs(found.total - found.target_value) < 1e-4, len(found.top(3))
    (True, 3)
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
    twin, rule = first.twin, first.rule
    points = tuple(dict.fromkeys(point for question in questions for point in question.metric.hook_points))
    with differentiable(first) as parts:
        cache = ForwardCache(twin, points, autoencoders=first.autoencoders)
        with cache.recording():
            logits = first.run()
        values = [question.metric.of(logits, cache.activations) for question in questions]
        direct = _direct_effects(cache, questions, values, means)
        for question, value, straight in zip(questions, values, direct, strict=True):
            effects = _effects(cache, parts, value, question.metric, means)
            result = Attribution(question, float(value.detach()), 0.0, **effects, **straight, means=means)
            if not result.constants.keys().isdisjoint(cache.starts):
                require_linear(question)
            yield _checked(result, logits.dtype) if rule.complete else result


def by_source(question: Question) -> Tensor:
    """What each ordinary head's value carried from each source: pattern times ``v . G``.

    Raises `AllHeadsError` where heads do not write ``pattern @ v``.
    """
    written = [site for site in sites(question.twin) if site.kind == "A"]
    patterns, values = ([f"{site.location.prefix}hook_{name}" for site in written] for name in ("pattern", "v"))
    points = (*question.metric.hook_points, *patterns, *values)
    with differentiable(question):
        cache = ForwardCache(question.twin, points)
        with cache.recording():
            value = question.metric.of(question.run(), cache.activations)
        gradients = torch.autograd.grad(value, [cache.activations[site.point] for site in written])
    shares = []
    for gradient, site, *names in zip(gradients, written, patterns, values, strict=True):
        z, pattern, v = (cache.activations[name].detach()[0] for name in (site.point, *names))
        v = v.repeat_interleave(max(1, z.shape[1] // v.shape[1]), 1)
        # Patterns may be shown in float32.
        carried = (
            torch.einsum("hds,she->dhe", pattern.to(v), v) if v.shape == z.shape else torch.full_like(z, torch.inf)
        )
        if not (carried - z).norm() <= ULPS * torch.finfo(pattern.dtype).eps * z.norm():
            raise AllHeadsError(
                f"heads that write their pattern times {names[1]}",
                f"{question.twin.cfg.architecture}, whose {names[0]} is something else",
                "What it carried cannot be split by source.",
            )
        shares.append(pattern.to(v) * torch.einsum("dhe,she->hds", gradient[0], v))
    if len({share.shape for share in shares}) != 1 or len(cache.stacks) > 1:
        raise AllHeadsError("one stack of equal layers", ", ".join(cache.stacks), "Split heads by source there.")
    return torch.stack(shares)


def _effects(
    cache: ForwardCache, parts: FrozenParts, value: Tensor, metric: Metric, means: Means | None
) -> dict[str, Any]:
    """Gradient times what is written, everywhere: embeddings, the stream, heads, neurons, constants."""
    fixed = constants(parts)
    streams = cache.cuts(metric.stream)
    names = [*dict.fromkeys([*cache.embeddings, *cache.starts, *streams, *(site.point for site in cache.sites)])]
    tensors = [cache.activations[name] for name in names] + [tensor for _, tensor in fixed.values()]
    gradients = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
    gradient = dict(zip([*names, *fixed], gradients, strict=True))

    def effect(name: str, written: Tensor) -> Tensor:
        found = gradient[name]
        return torch.zeros_like(written) if found is None else found.detach()[0] * written

    absolute = {name: effect(name, cache.activations[name].detach()[0]) for name in (*cache.embeddings, *streams)}
    begins = {name: effect(name, _written(cache, name, means)) for name in cache.embeddings}
    reached = {name: pair for name, pair in fixed.items() if gradient[name] is not None}
    layers = layers_of(cache, reached, streams)
    values = {name: (float((gradient[name] * fixed[name][1].detach()).sum()), layer) for name, layer in layers.items()}
    if parts.rule.complete:
        values |= {name: (effect, -1) for name, effect in unnamed(cache, gradient, fixed).items()}
    if EMBEDDINGS[2] in begins:
        values[EMBEDDINGS[2]] = (float(begins.pop(EMBEDDINGS[2]).sum()), -1)
    of_means = sum(float(absolute[name].sum()) - float(begins[name].sum()) for name in begins)
    effects = {site: effect(site.point, _written(cache, site.point, means)) for site in cache.sites}
    return {
        "begins": {name.removesuffix(".hook_out"): written.sum(-1) for name, written in begins.items()},
        "constants": values,
        "effects": {site.name: _by_part(site, values) for site, values in effects.items()},
        "stream": _stacked([absolute[name].sum(-1) for name in streams]),
        "baseline": of_means if means else 0.0,
    }


def _by_part(site: Site, values: Tensor) -> Tensor:
    """What every head, ``[head pos]``, or neuron, ``[pos d_mlp]``, contributes, of what each entry does."""
    return site.summed(values) if site.scalar else values.sum(-1).T


def _stacked(streams: list[Tensor]) -> Tensor:
    """Streams of two stacks may have different lengths: the shorter ends with zeros."""
    length = max(len(stream) for stream in streams)
    return torch.stack([functional.pad(stream, (0, length - len(stream))) for stream in streams])


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
    """What heads and neurons write straight into each target: along the stream, whatever norms stand in it.

    Targets at different positions of one stack are taken in one go, because nothing on this way leaves its position.
    """
    metrics = [question.metric for question in questions]
    if len(questions) == 1 or not _apart(cache, metrics):
        return [{"direct": _at_position(cache, cache.direct(value), None, means)} for value in values]
    gradients = cache.direct(torch.stack(list(values)).sum())
    return [{"direct": _at_position(cache, gradients, metric.position, means)} for metric in metrics]


def _apart(cache: ForwardCache, metrics: Sequence[Metric]) -> bool:
    """Do targets read the end of one stream at different positions?"""
    return len(cache.stacks) == 1 and len({metric.position for metric in metrics}) == len(metrics)


def _at_position(
    cache: ForwardCache, gradients: dict[str, Tensor | None], position: int | None, means: Means | None
) -> dict[str, Tensor]:
    """Gradient times what is written by heads and neurons, at one position if several are in question."""
    direct = {}
    for site in cache.sites:
        written, gradient = _written(cache, site.point, means), gradients[site.point]
        part, at = torch.zeros_like(written), slice(None) if position is None else position
        if gradient is not None:
            part[at] = gradient.detach()[0, at] * written[at]
        direct[site.name] = _by_part(site, part)
    return direct


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
        twin = result.question.twin
        others = f": perhaps {', '.join(twin.untouched)}" if twin.untouched else ""
        raise AllHeadsError(
            f"a network that is linear under rule {result.rule.name!r}",
            f"{twin.cfg.architecture}, whose parts miss the whole by {result.completeness_error:.0e} of their size",
            f"Something in its layers is not frozen{others}; use rule='gradient'.",
        )
    return result
