"""The linear network that attribution reads: what a rule freezes keeps the value of one run.

What a rule freezes is recorded when the network first runs and used from then on:

- a norm ``x -> gain * s * x + shift`` keeps its scale s;
- queries and keys of ordinary heads keep their values, and with them the patterns;
- banks keep the patterns of their heads (`allheads.heads.frozen`).

TransformerLens' hook points stay where they are, so activations can be read and changed as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from allheads.attribution.rules import DEFAULT, Rule, rule_named
from allheads.errors import AllHeadsError
from allheads.models.frozen_norms import FrozenNorm, frozen_norms
from allheads.twin.prompt import Texts, prompt_ids
from allheads.twin.twin import TwinBridge


@dataclass
class FrozenParts:
    """What is frozen, module by module; everything is recorded in the first run."""

    twin: TwinBridge
    norms: dict[str, FrozenNorm] = field(default_factory=dict)
    queries_and_keys: dict[str, Tensor] = field(default_factory=dict)

    def constants(self) -> Iterator[tuple[str, nn.Module, Tensor]]:
        """What frozen parts add that does not depend on the input: shifts of norms, constants of plain neurons."""
        for path, norm in self.norms.items():
            if norm.shift is not None and norm.shift.any():
                yield f"{path}.bias", norm.module, norm.shift
        for layer in self.twin.layers:
            if layer.bank.frozen is not None and layer.bank.frozen.constant is not None:
                yield f"{layer.location.prefix}constant", layer.bank, layer.bank.frozen.constant


@contextmanager
def freezing(twin: TwinBridge, rule: Rule, unfrozen: tuple[str, ...] = ()) -> Iterator[FrozenParts]:
    """Freeze what the rule names for a while; the first run inside is the one that is recorded.

    Queries or keys at the hook points ``unfrozen`` are left as they are.
    """
    parts = FrozenParts(twin)
    with ExitStack() as stack:
        if rule.norms:
            parts.norms = stack.enter_context(frozen_norms(twin.original_model))
        if rule.patterns:
            points = (name for name in twin.hook_dict if name.endswith((".attn.hook_q", ".attn.hook_k")))
            hooks = [(name, _keeper(name, parts.queries_and_keys)) for name in points if name not in unfrozen]
            stack.enter_context(twin.hooks(fwd_hooks=hooks))
        if rule.gates:
            for bank in twin.banks:
                bank.freeze(rule.gate_share)
                stack.callback(bank.unfreeze)
        yield parts


@contextmanager
def frozen(twin: TwinBridge, tokens: Texts, *, rule: str | Rule = DEFAULT) -> Iterator[TwinBridge]:
    r"""The twin as the linear network it is on ``tokens``, under a rule that freezes everything.

    Inside, for any change d of its embeddings (or of anything a head or neuron writes)

        logits(x + d) = logits(x) + J d,

    with the same J for every d; ``logits(x)`` are the twin's own up to rounding. Several rows may run inside:
    each is this prompt, changed by hooks in its own way.

    Raises `AllHeadsError` for a rule that does not make the twin linear, for tokens it cannot read, and for a twin with
    more than one stack.

    >>> import allheads as ah
    >>> with ah.frozen(twin, "Mary and John", rule="half"):  # doctest: +SKIP
    ...     logits = twin("Mary and John")
    """
    chosen = rule_named(rule)
    if not chosen.complete:
        raise AllHeadsError(
            "a rule under which the twin is linear", repr(chosen.name), "Use value, gate or half, or ah.attribute."
        )
    ids = prompt_ids(twin, tokens)
    with freezing(twin, chosen):
        with torch.no_grad():
            twin(ids)
        yield twin


def require_gradients() -> None:
    """Raises `AllHeadsError` inside `torch.inference_mode`."""
    if torch.is_inference_mode_enabled():
        raise AllHeadsError("a place where gradients can be taken", "torch.inference_mode", "Leave it first.")


def _keeper(name: str, recorded: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Let pass what is recorded instead of what comes."""

    def keep(value: Tensor, hook: object) -> Tensor:
        return recorded.setdefault(name, value.detach()).expand_as(value)

    return keep
