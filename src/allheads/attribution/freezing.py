"""The linear network that attribution reads: what a rule freezes keeps the value of one run.

What a rule freezes is recorded when the network first runs and used from then on:

- a norm ``x -> gain * s * x + shift`` keeps its scale s, call by call;
- queries and keys of ordinary heads keep their values, and with them the patterns;
- banks keep the patterns of their heads (`allheads.heads.frozen`).

In that run, what is frozen writes what it writes when it is live: queries and keys are passed on, banks are linear
about what they write, and each call of a norm is compared with the norm. So the run's logits are the twin's.
TransformerLens' hook points stay where they are, so activations can be read and changed as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from allheads.attribution.constants import ULPS, only_biases_differ
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.frozen_twin import FrozenParts, entered
from allheads.attribution.metric import NOTHING
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, RULES, Rule, rule_named
from allheads.errors import AllHeadsError
from allheads.models.observe import Inputs
from allheads.twin.capture import capturing
from allheads.twin.prompt import Texts, one_prompt
from allheads.twin.twin import TwinBridge, require_twin


@contextmanager
def freezing(twin: TwinBridge, rule: Rule, unfrozen: tuple[str, ...] = ()) -> Iterator[FrozenParts]:
    """Freeze what the rule names for a while; the first run inside is the one that is recorded.

    Queries or keys at the hook points ``unfrozen`` are left as they are. Inside another such context, this one counts
    while it lasts: the twin is frozen as this rule says, and in no other way.

    Raises `AllHeadsError` where another thread has frozen the twin.
    """
    parts = FrozenParts(twin, rule)
    with entered(parts, unfrozen):
        yield parts


@contextmanager
def differentiable(question: Question) -> Iterator[FrozenParts]:
    """The twin frozen for a question, for a while, with gradients of what passes in it and of biases.

    Raises `AllHeadsError` as `freezing` does, and inside `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise AllHeadsError("a place where gradients can be taken", "torch.inference_mode", "Leave it first.")
    twin = question.twin
    with torch.enable_grad(), freezing(twin, question.rule, question.unfrozen) as parts, only_biases_differ(twin):
        yield parts


@contextmanager
def live(twin: TwinBridge) -> Iterator[None]:
    """The twin as it is for a while, with nothing frozen."""
    with freezing(twin, RULES["gradient"]):
        yield


@contextmanager
def frozen(twin: TwinBridge, tokens: Texts | Inputs, *, rule: str | Rule = DEFAULT) -> Iterator[TwinBridge]:
    r"""The twin as the linear network it is on ``tokens``, under a rule that freezes everything.

    Inside, for any change d of its embeddings (or of anything a head or neuron writes)

        logits(x + d) = logits(x) + J d,

    with the same J for every d; ``logits(x)`` are the twin's own up to rounding. Several rows may run inside:
    each is this prompt, changed by hooks in its own way.

    ``ah.attribute``, ``ah.graph`` and another ``ah.frozen`` inside are about the twin itself, as outside; the frozen
    twin is there again when they are done.

    Raises `AllHeadsError` for a rule that does not make the twin linear, for a twin that it does not make linear, for
    tokens it cannot read, and where another thread has frozen the twin; inside,
    for a prompt of another length, and for hooks on the heads of a neuron, which are frozen together.

    >>> import allheads as ah
    >>> with ah.frozen(twin, "Mary and John", rule="half"):
    ...     logits = twin("Mary and John")
    """
    chosen = rule_named(rule)
    if not chosen.complete:
        raise AllHeadsError(
            "a rule under which the twin is linear", repr(chosen.name), "Use value, gate or half, or ah.attribute."
        )
    question = Question(require_twin(twin), one_prompt(twin, tokens), NOTHING, chosen)
    with freezing(twin, chosen):
        require_linear(question)
        yield twin


def require_linear(question: Question) -> None:
    """Run the prompt in a frozen twin, none of its embeddings, and -2 times these: the stream has to follow a line.

    The end of the network may be curved, so the stream is compared before it, where that is shown.

    Raises `AllHeadsError` if it does not.
    """
    cache = ForwardCache(question.twin)
    # Tensors of inference mode have no gradients, and those show where streams begin.
    with torch.inference_mode(False):
        ordinary = replace(question, inputs={name: value.clone() for name, value in question.inputs.items()})
        with torch.no_grad():
            ordinary.run()  # which is recorded
        with torch.enable_grad(), cache.recording():
            ordinary.run()
    begins, end = list(cache.embeddings), cache.cuts()[-1]
    whole = cache.activations[end].detach()
    none, mirrored = (_stream(question, begins, end, factor) for factor in (0.0, -2.0))
    gap = float((mirrored - (3.0 * none - 2.0 * whole)).abs().max())
    size = max(float(stream.abs().max()) for stream in (whole, none, mirrored))
    if not gap <= ULPS * torch.finfo(whole.dtype).eps * size:
        others = f": perhaps {', '.join(question.twin.untouched)}" if question.twin.untouched else ""
        raise AllHeadsError(
            f"a twin that is linear under rule {question.rule.name!r}",
            f"{question.twin.cfg.architecture}, off a line by {gap / size:.0e} of its stream",
            f"Something in its layers is not frozen{others}; ah.attribute with rule='gradient' reads it.",
        )


@torch.no_grad()
def _stream(question: Question, begins: list[str], end: str, factor: float) -> Tensor:
    """The end of the stream, with what streams begin with times a factor."""
    twin = question.twin
    hooks: list[tuple[str, Callable[..., Tensor]]] = [(name, lambda value, hook: factor * value) for name in begins]
    with twin.hooks(fwd_hooks=hooks), capturing(twin, [end]) as activations:
        question.run()
    return activations[end]
