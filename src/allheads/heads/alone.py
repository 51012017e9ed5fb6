"""Threads on one twin: plain runs go side by side; who hooks, caches or freezes it is alone, and others are told so.

A hook hangs in the network, where every pass meets it: a second thread would read, or change, the first one's. A bank
that is edited has one editor in the same way.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn

from allheads.errors import AllHeadsError


@dataclass
class _Use:
    """Passes by thread, and how many contexts the one thread has entered that is alone."""

    passes: Counter[int] = field(default_factory=Counter)
    thread: int = 0
    contexts: int = 0


_LOCK = threading.Lock()
_USES: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()


@contextmanager
def alone(*modules: nn.Module) -> Iterator[None]:
    """No other thread runs these twins and banks, or is alone with one, for a while.

    Raises `AllHeadsError` if one is now; meanwhile, there.
    """
    thread = threading.get_ident()
    with _LOCK:
        uses = [_use(module, thread) for module in modules]
        if any(set(use.passes) - {thread} for use in uses):
            raise _busy()
        for use in uses:
            use.thread, use.contexts = thread, use.contexts + 1
    try:
        yield
    finally:
        with _LOCK:
            for use in uses:
                use.contexts -= 1


def passing(module: nn.Module) -> AbstractContextManager[None]:
    """A pass through a twin or bank. Raises `AllHeadsError` where another thread is alone with it.

    What `torch.compile` makes of one is not looked at: a program on tensors has no locks.
    """
    return nullcontext() if torch.compiler.is_compiling() else _passing(module)


@contextmanager
def _passing(module: nn.Module) -> Iterator[None]:
    thread = threading.get_ident()
    with _LOCK:
        use = _use(module, thread)
        use.passes[thread] += 1
    try:
        yield
    finally:
        with _LOCK:
            use.passes[thread] -= 1
            use.passes += Counter()  # drops those at zero


def _use(module: nn.Module, thread: int) -> _Use:
    use = _USES.setdefault(module, _Use())
    if use.contexts and use.thread != thread:
        raise _busy()
    return use


def _busy() -> AllHeadsError:
    return AllHeadsError(
        "a twin that no other thread uses",
        "one that another thread hooks, caches, freezes, edits or runs",
        "Wait for it, or convert a twin for each thread: they share their weights.",
    )
