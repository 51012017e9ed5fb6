"""attribute: one forward and one backward pass of the held twin, and every part's share of the target.

1. The twin runs with what the rule holds, and hook points keep what embeddings, heads and neurons write.
2. The gradient of the target at each of them, times what is written there, is its effect.
3. The gradient of the target at the end of the stream, carried back through the layer that writes and no other, gives
   what is written straight into the logits.
4. Every cut of the stream has to sum to the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from allheads.attribution.attribution import Attribution
from allheads.attribution.constants import constants, only_biases_differ, places
from allheads.attribution.forward_cache import Run
from allheads.attribution.freezing import Holding, holding
from allheads.attribution.metrics import Asked, TargetLike, make_target, token_ids, token_names
from allheads.attribution.rules import DEFAULT, Rule, rule_named
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.twin import TwinBridge

#: Completeness that rounding allows, relative to the sum of absolute contributions, in units of the last place.
_ULPS = 2.0**10


def attribute(
    twin: TwinBridge,
    tokens: str | Tensor,
    target: TargetLike,
    *,
    rule: str | Rule = DEFAULT,
    position: int = -1,
    baseline: Means | None = None,
    sources: bool = False,
) -> Attribution:
    r"""How much every embedding, head and neuron contributes to a target, at every position.

    With the rule's parts held, the target is ``sum_p G_p . x_p + c`` for the stream x at any cut, where G is its
    gradient there. A part that writes a, through weights W_O, contributes ``a W_O . G``: exactly, not to first order.
    Relative to a baseline it contributes ``(a - mean) W_O . G``.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        target: a token (text or id), a pair (for, against), weights ``[d_vocab]``, or a function of the logits
            ``[d_vocab]``. Where that, or the end of the network (a soft cap), is not linear, the result has an
            ``intercept``: what linear contributions cannot reach.
        rule: a name out of `allheads.attribution.rules`.
        position: where the target's logits are read; the last by default.
        baseline: from `ah.corpus.means`: embeddings, heads and neurons count relative to what they write on average.
        sources: also split each head by the position it carried from; not relative to a baseline.

    Returns:
        An `Attribution`. For complete rules ``completeness_error`` is rounding: below 1e-5 in float32 and 1e-12 in
        float64, at every cut.

    Raises:
        AllHeadsError: the prompt, target, position, rule or baseline cannot be read; gradients are switched off by
            `torch.inference_mode`; or this architecture has parts that the rule cannot hold.

    >>> import allheads as ah
    >>> found = ah.attribute(twin, "When Mary and John", (" Mary", " John"))  # doctest: +SKIP
    >>> found.top(3)  # doctest: +SKIP
    """
    chosen = rule_named(rule)
    ids = token_ids(twin, tokens)
    asked = make_target(twin, target, position, ids.shape[1])
    return contributions(twin, ids, asked, chosen, baseline=baseline, sources=sources)


def contributions(
    twin: TwinBridge,
    ids: Tensor,
    asked: Asked,
    rule: Rule,
    *,
    baseline: Means | None = None,
    sources: bool = False,
    moving: Iterable[str] = (),
) -> Attribution:
    """`attribute` for anything that is asked; ``moving`` are queries or keys that are not held."""
    (found,) = contributions_to_each(twin, ids, [asked], rule, baseline=baseline, sources=sources, moving=moving)
    return found


def contributions_to_each(
    twin: TwinBridge,
    ids: Tensor,
    asked: Sequence[Asked],
    rule: Rule,
    *,
    baseline: Means | None = None,
    sources: bool = False,
    moving: Iterable[str] = (),
) -> Iterator[Attribution]:
    """One forward pass, and a backward pass for each that is asked. The twin is held until the last one is taken."""
    require_gradients()
    split = ("attn.hook_v", "attn.hook_pattern") if sources else ()
    layers = (f"blocks.{layer}.{name}" for layer in range(len(twin.banks)) for name in split)
    extra = (*dict.fromkeys(point for each in asked for point in each.watched), *layers)
    with torch.enable_grad(), only_biases_differ(twin), holding(twin, rule, moving) as held:
        run = Run(twin, extra)
        with run.watching():
            logits = twin(ids)
        names = token_names(twin, ids)
        values = [each.of(logits, run.seen) for each in asked]
        direct = _direct(run, ids, asked, values, baseline)
        for each, value, straight in zip(asked, values, direct, strict=True):
            found = _effects(run, held, value, each, baseline) | straight
            if sources:
                found["sources"] = _by_source(run, value)
            result = Attribution(rule, each, names, float(value.detach()), 0.0, **found)
            yield _checked(result, twin, logits.dtype) if rule.complete else result


def require_gradients() -> None:
    """Raises `AllHeadsError` inside `torch.inference_mode`."""
    if torch.is_inference_mode_enabled():
        raise AllHeadsError("a place where gradients can be taken", "torch.inference_mode", "Leave it first.")


def _effects(run: Run, held: Holding, value: Tensor, asked: Asked, baseline: Means | None) -> dict[str, Any]:
    """Phases: the gradient everywhere, heads and neurons, embeddings and the stream, constants."""
    fixed = constants(held)
    streams = run.streams if asked.layer is None else run.streams[: asked.layer + 1]
    names = [*run.embeddings, *streams, *run.heads, *run.neurons]
    wanted = [run.seen[name] for name in names] + [tensor for _, tensor in fixed.values()]
    grads = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
    grad = dict(zip([*names, *fixed], grads, strict=True))

    def worth(name: str, parts: Tensor | None = None) -> Tensor:
        parts = run.seen[name].detach()[0] if parts is None else parts
        gradient = grad[name]
        return torch.zeros_like(parts) if gradient is None else gradient.detach()[0] * parts

    def relative(name: str) -> Tensor:
        return worth(name, _relative(run, name, baseline))

    where = places(run, {name: pair for name, pair in fixed.items() if grad[name] is not None})
    values = {name: (float((grad[name] * fixed[name][1].detach()).sum()), place) for name, place in where.items()}
    if EMBEDDINGS[2] in run.embeddings:
        values[EMBEDDINGS[2]] = (float(relative(EMBEDDINGS[2]).sum()), -1)
    begun = sum(float(worth(name).sum()) - float(relative(name).sum()) for name in run.embeddings) if baseline else 0.0
    return {
        "embeddings": relative(EMBEDDINGS[0]).sum(-1),
        "positions": relative(EMBEDDINGS[1]).sum(-1) if EMBEDDINGS[1] in run.embeddings else None,
        "constants": values,
        "heads": torch.stack([relative(name).sum(-1).T for name in run.heads]),
        "neurons": torch.stack([relative(name) for name in run.neurons]),
        "stream": torch.stack([worth(name).sum(-1) for name in streams]),
        "baseline": begun,
    }


def _relative(run: Run, name: str, baseline: Means | None) -> Tensor:
    """What is written at a hook point, less its mean."""
    written = run.seen[name].detach()[0]
    if baseline is None:
        return written
    mean = baseline.of(name).to(written)
    if mean.shape not in (written.shape, written.shape[1:]):
        raise AllHeadsError(
            f"means {tuple(written.shape[1:])}, or by position {tuple(written.shape)}, at {name}",
            str(tuple(mean.shape)),
            "Measure them with ah.corpus.means on this twin, by position on prompts of one length.",
        )
    return written - mean


def _by_source(run: Run, value: Tensor) -> Tensor:
    """What a head's value carried from each source is worth: pattern times ``v . G``."""
    grads = torch.autograd.grad(value, [run.seen[name] for name in run.heads], retain_graph=True)
    found = []
    for layer, gradient in enumerate(grads):
        pattern, v = (run.seen[f"blocks.{layer}.attn.hook_{name}"].detach()[0] for name in ("pattern", "v"))
        v = v.repeat_interleave(gradient.shape[2] // v.shape[1], 1)
        found.append(pattern * torch.einsum("dhe,she->hds", gradient[0], v))
    return torch.stack(found)


def _direct(
    run: Run, ids: Tensor, asked: Sequence[Asked], values: Sequence[Tensor], baseline: Means | None
) -> list[dict[str, Any]]:
    """What heads and neurons write straight into each target.

    Where every layer adds to the stream, the gradient at its end is that at the end of each layer, and is carried back
    through what the layer adds: for targets at different positions in one go, because nothing on this way leaves its
    position. Norms after the sum change that, and so do targets inside the network: then it runs once more, with
    everything that heads and neurons write cut off from what they read.
    """
    positions = {each.position for each in asked}
    if len(positions) < len(asked):
        pairs = zip(asked, values, strict=True)
        return [_direct(run, ids, [each], [value], baseline)[0] for each, value in pairs]
    names, seen = [*run.heads, *run.neurons], run
    if all(each.layer is None and _adds_up(run, each.position) for each in asked):
        ends = [torch.autograd.grad(value, [run.seen[run.end]], retain_graph=True)[0] for value in values]
        gradient = torch.stack(ends).sum(0)
        grads: list[Tensor | None] = [
            _through(run, name, added, gradient) for name, added in zip(names, run.added, strict=True)
        ]
    else:
        seen = Run(run.twin, run.extra, cut=True)
        with seen.watching():
            logits = run.twin(ids)
        again = torch.stack([each.of(logits, seen.seen) for each in asked])
        grads = list(torch.autograd.grad(again.sum(), [seen.leaves[name] for name in names], allow_unused=True))
    return [_straight(seen, names, grads, each.position, baseline) for each in asked]


def _straight(
    run: Run, names: Sequence[str], grads: Sequence[Tensor | None], position: int, baseline: Means | None
) -> dict[str, Any]:
    """Gradient times what is written, at one position: heads, then neurons."""
    parts = []
    for name, grad in zip(names, grads, strict=True):
        written = _relative(run, name, baseline)[position]
        parts.append(torch.zeros_like(written) if grad is None else grad[0, position] * written)
    heads = torch.stack([part.sum(-1) for part in parts[: len(run.heads)]])
    return {"heads_direct": heads.detach(), "neurons_direct": torch.stack(parts[len(run.heads) :]).detach()}


def _through(run: Run, name: str, added: str, gradient: Tensor) -> Tensor:
    """The gradient at the end of the stream, carried back through what one layer's heads or neurons add."""
    (carried,) = torch.autograd.grad(run.seen[added], [run.seen[name]], grad_outputs=gradient, retain_graph=True)
    return carried


def _adds_up(run: Run, position: int) -> bool:
    """Is the end of the stream its beginning plus what attention and MLPs add?"""
    first, end = (run.seen[name][0, position].detach() for name in (run.streams[0], run.end))
    added = [run.seen[name][0, position].detach() for name in run.added]
    size = sum(float(each.abs().max()) for each in added)
    return bool((sum(added, first) - end).abs().max() <= _ULPS * torch.finfo(end.dtype).eps * size)


def _checked(result: Attribution, twin: TwinBridge, dtype: torch.dtype) -> Attribution:
    """Give the end of the network, where it is not linear, its intercept; then every cut has to reach the target.

    Raises `AllHeadsError` if one does not: the architecture has something that the rule does not hold.
    """
    close = _ULPS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    last = len(result.stream) - 1
    gap = result.target_value - result.cut(last)
    if abs(gap) > close * max(abs(result.target_value), float(result.stream[last].abs().sum())):
        result = replace(result, intercept=gap)
    if result.completeness_error > close and dtype in (torch.float32, torch.float64):
        raise AllHeadsError(
            f"a network that is linear under rule {result.rule.name!r}",
            f"{twin.cfg.architecture}, whose parts miss the whole by {result.completeness_error:.0e} of their size",
            "Something in its layers is not held: use rule='gradient'.",
        )
    return result
