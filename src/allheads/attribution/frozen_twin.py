"""What is frozen in a twin: contexts one inside the other, of which the innermost counts, by one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from allheads.attribution.rules import Rule
from allheads.errors import AllHeadsError
from allheads.heads.alone import alone
from allheads.heads.bank import HeadBank
from allheads.heads.frozen import FrozenGates
from allheads.heads.hooks import HeadHooks
from allheads.models.compat import tree_map
from allheads.models.frozen_norms import FrozenCall, FrozenNorm, frozen_norms, other_length, refusing_other_norms
from allheads.models.observe import first_tensor
from allheads.models.read_mlps import mixers, routers
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.twin import TwinBridge


@dataclass(eq=False)
class FrozenParts:
    """What one context freezes: it is recorded in the first run that comes to its end."""

    twin: TwinBridge
    rule: Rule
    norms: dict[str, list[FrozenCall]] = field(default_factory=dict)
    queries_and_keys: dict[str, list[Tensor]] = field(default_factory=dict)
    gates: list[FrozenGates | None] = field(default_factory=list)
    #: By router and mixer: the rows that it read, and what it gave for them.
    outputs: dict[str, tuple[torch.Size, Any]] = field(default_factory=dict)
    #: What mixers add: they are held as a whole.
    mixed: dict[str, tuple[nn.Module, Tensor]] = field(default_factory=dict)
    recorded: bool = False

    def constants(self) -> Iterator[tuple[str, nn.Module, Tensor]]:
        """What frozen parts add that does not depend on the input: shifts of norms, constants of plain neurons."""
        for path, calls in self.norms.items():
            for number, call in enumerate(calls, 1):
                if call.shift.requires_grad and call.shift.any():
                    name = "bias" if call.norm.shift.any() else "rounding"
                    yield f"{path}.{name}" + (f" in call {number}" if len(calls) > 1 else ""), call.module, call.shift
        for layer, gates in zip(self.twin.layers, self.gates, strict=False):
            if gates is not None and gates.constant is not None:
                yield f"{layer.location.prefix}constant", layer.bank, gates.constant
        for path, (module, written) in self.mixed.items():
            yield f"{path}.held", module, written


class FrozenTwin:
    """The one record of what is frozen in a twin.

    Each forward pass follows the innermost context: it records what that freezes, or uses it. Whatever another thread
    runs meanwhile is refused.
    """

    def __init__(self, twin: TwinBridge) -> None:
        self.twin, self.thread = twin, threading.get_ident()
        self.contexts: list[FrozenParts] = []
        self._norms: dict[str, FrozenNorm] = {}
        self._fired: dict[str, int] = {}
        self._begun = False
        self._before = [layer.bank.frozen for layer in twin.layers]
        self._installed = ExitStack()
        self._mixers = list(mixers(twin))
        self._mixed = {id(part) for _, module in self._mixers for part in module.modules()}

    def enter(self, parts: FrozenParts, unfrozen: tuple[str, ...]) -> ExitStack:
        """Let a context count until what is returned is closed, but for queries or keys at these hook points."""
        with ExitStack() as stack:
            stack.callback(self._leave, parts)
            if not self.contexts:
                self._install()
            self.contexts.append(parts)
            self._follow()
            if parts.rule.patterns:
                prefixes = (layer.location.prefix for layer in self.twin.index.attention.values())
                sides = ("hook_q", "hook_k", "gate.hook_out")  # some multiply what a head carries by a gate
                points = [f"{prefix}{side}" for prefix in prefixes for side in sides]
                known = self.twin.hook_dict
                hooks = [(name, self._keeper(name, parts)) for name in points if name in known and name not in unfrozen]
                stack.enter_context(self.twin.hooks(fwd_hooks=hooks))
            kept = [*(routers(self.twin) if parts.rule.gates else ()), *(self._mixers if parts.rule.patterns else ())]
            for path, module in kept:
                handle = module.register_forward_hook(self._output_keeper(path, parts), with_kwargs=True)
                stack.callback(handle.remove)
            if parts.rule.norms:
                mixed = self._mixed if parts.rule.patterns else ()
                refusing = refusing_other_norms(
                    self.twin.original_model, lambda norm: self._begun and id(norm) not in mixed
                )
                stack.enter_context(refusing)
            return stack.pop_all()

    def require_thread(self) -> None:
        """Raises `AllHeadsError` in any thread but the one that froze the twin."""
        if threading.get_ident() != self.thread:
            raise AllHeadsError(
                "a twin that no other thread has frozen",
                "one on which another thread runs ah.attribute, ah.graph or ah.frozen",
                "Wait for it, or convert a twin for each thread: they share their weights.",
            )

    def _install(self) -> None:
        network = self.twin.original_model
        self._norms = self._installed.enter_context(frozen_norms(network, self.require_thread))
        handles = [
            network.register_forward_pre_hook(lambda *_: self._begin()),
            network.register_forward_hook(lambda *_: self._end()),
            *(layer.bank.register_forward_pre_hook(self._at_bank) for layer in self.twin.layers),
        ]
        for handle in handles:
            self._installed.callback(handle.remove)
        begins = [name for name in self.twin.hook_dict if name in EMBEDDINGS or name.endswith(".0.hook_resid_pre")]
        self._installed.enter_context(self.twin.hooks(fwd_hooks=[(name, self._stream_begins) for name in begins]))

    def _leave(self, parts: FrozenParts) -> None:
        if parts in self.contexts:
            self.contexts.remove(parts)
        if self.contexts:
            self._follow()
        else:
            self._installed.close()
            self._set_gates(self._before)

    def _follow(self) -> None:
        """Let norms and banks be as the innermost context says."""
        parts = self.contexts[-1]
        for path, norm in self._norms.items():
            held = parts.rule.patterns and id(norm.module) in self._mixed
            norm.calls = parts.norms.setdefault(path, []) if parts.rule.norms and not held else None
            norm.recording = not parts.recorded
        self._set_gates(parts.gates or self._before)

    def _set_gates(self, gates: list[FrozenGates | None]) -> None:
        for layer, frozen in zip(self.twin.layers, gates, strict=True):
            layer.bank.frozen = frozen

    def _begin(self) -> None:
        """A forward pass begins; one that broke off is forgotten."""
        self.require_thread()
        parts = self.contexts[-1]
        self._fired.clear()
        self._begun = False
        for norm in self._norms.values():
            norm.begin()
        if parts.recorded:
            return
        parts.queries_and_keys.clear()
        parts.outputs.clear()
        parts.mixed.clear()
        for calls in parts.norms.values():
            calls.clear()
        if parts.rule.gates:
            for layer in self.twin.layers:
                layer.bank.freeze(parts.rule.gate_share)
            parts.gates = [layer.bank.frozen for layer in self.twin.layers]

    def _stream_begins(self, value: Tensor, hook: Any) -> None:
        """What a network makes of sounds and images before that is not read, and may have norms of any kind."""
        self._begun = True

    def _end(self) -> None:
        self.contexts[-1].recorded = True
        self._follow()

    def _at_bank(self, bank: HeadBank, inputs: tuple[Tensor, ...]) -> None:
        """Before a bank runs: refuse what its frozen gates would not show."""
        self.require_thread()
        parts = self.contexts[-1]
        if not parts.rule.gates or bank.frozen is None:
            return
        if bank.edited is None and bank.hooks.watched(*HeadHooks.PER_HEAD):
            raise AllHeadsError(
                "hooks on whole neurons, whose heads are frozen together",
                "one on the heads of neurons",
                "Use hook_pre or hook_post: patch or ablate neurons such as L10.N77.",
            )
        if bank.hooks.watched(*HeadHooks.PATTERNS):
            raise AllHeadsError(
                "hooks on what edited heads write", "one on their patterns, which are frozen", "Use hook_z."
            )
        value, rows = bank.frozen.value, inputs[0]
        if value is not None and not parts.recorded:
            raise AllHeadsError("banks that run once in a forward pass", "one that runs twice", "Use rule='gradient'.")
        if value is not None and bank.frozen.by_prompt(rows).shape[1] != value.shape[1]:
            raise other_length(value.shape[1], tuple(rows.shape))

    def _keeper(self, name: str, parts: FrozenParts) -> Callable[..., Tensor | None]:
        """Let pass what is recorded instead of what comes."""

        def keep(value: Tensor, hook: Any) -> Tensor | None:
            self.require_thread()
            if parts is not self.contexts[-1]:
                return None
            calls = parts.queries_and_keys.setdefault(name, [])
            number = self._fired[name] = self._fired.get(name, -1) + 1
            if not parts.recorded:
                calls.append(value.detach())
            kept = calls[number if len(calls) > 1 else 0]
            if kept.shape[1:] != value.shape[1:] or len(kept) not in (1, len(value)):
                raise other_length(kept.shape[1], tuple(value.shape))
            return kept.expand_as(value)

        return keep

    def _output_keeper(self, path: str, parts: FrozenParts) -> Callable[..., Any]:
        """Let a router, or a mixer, give what is recorded, for every prompt again, whatever it has read."""
        constant = any(path == other for other, _ in self._mixers)

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            self.require_thread()
            if parts is not self.contexts[-1]:
                return None
            rows = (*args, *kwargs.values())[0].shape[:-1]
            if not parts.recorded:
                if path in parts.outputs:
                    raise AllHeadsError("parts that run once in a forward pass", f"{path} twice", "Not supported.")
                kept = tree_map(_detached, output)
                if constant and torch.is_grad_enabled():
                    parts.mixed[path] = module, first_tensor(kept).requires_grad_()
                parts.outputs[path] = (rows, kept)
            shape, kept = parts.outputs[path]
            return kept if rows == shape else tree_map(lambda part: _repeated(part, shape, rows), kept)

        return keep


def _detached(part: Any) -> Any:
    return part.detach() if isinstance(part, Tensor) else part


def _repeated(part: Any, shape: torch.Size, rows: torch.Size) -> Any:
    """What was said of the rows of one prompt, said of each of several: laid end to end, or side by side."""
    if not isinstance(part, Tensor):
        return part
    if len(shape) > 1 and shape[1:] == rows[1:] and part.shape[:1] == shape[:1]:
        return part.expand(rows[0], *part.shape[1:])
    if part.shape[:1] == (shape.numel(),) and rows.numel() % shape.numel() == 0:
        return part.repeat(rows.numel() // shape.numel(), *[1] * (part.ndim - 1))
    raise AllHeadsError(
        f"the prompt of {shape.numel()} tokens on which the router was frozen, one at a time",
        f"activations of shape {tuple(rows)}",
        "Run rows one by one.",
    )


_LOCK = threading.Lock()
_FROZEN: dict[TwinBridge, FrozenTwin] = {}


def entered(parts: FrozenParts, unfrozen: tuple[str, ...] = ()) -> ExitStack:
    """Make this the innermost context of its twin, until what is returned is closed.

    Raises `AllHeadsError` at once where another thread has frozen the twin.
    """
    twin = parts.twin
    with _LOCK:
        frozen = _FROZEN.get(twin)
        if frozen is None:
            frozen = _FROZEN[twin] = FrozenTwin(twin)
        frozen.require_thread()

    def forget() -> None:
        with _LOCK:
            if not frozen.contexts:
                _FROZEN.pop(twin, None)

    with ExitStack() as stack:
        stack.callback(forget)
        stack.enter_context(alone(twin, *twin.banks))
        stack.enter_context(frozen.enter(parts, unfrozen))
        return stack.pop_all()
