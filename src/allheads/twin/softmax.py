"""What enters the softmax that makes a pattern: the scores of a layer's heads, whatever makes these.

Layers scale, turn, normalise, cap and shift their scores in many ways, and few show what comes of it. All of them call
a softmax, and the pattern that they show is what it gives. So calls of softmax are watched, and the one that made a
pattern is known by its output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from allheads.twin.twin import TwinBridge

#: Ends of names: a pattern's hook point, and what stands among activations for the scores that it is made of.
PATTERN, SCORES = "hook_pattern", "softmax_in"
#: Calls of softmax that are remembered until a pattern is shown.
_CALLS = 4


@contextmanager
def scores_shown(twin: TwinBridge, names: Iterable[str], activations: dict[str, Tensor]) -> Iterator[None]:
    """Let scores ``[batch head query key]`` be among what is kept of a run: those of ``names`` that end in `SCORES`.

    They are in the graph of the run. Nothing is kept where no softmax has given the pattern as it is shown.
    """
    watch = _Softmaxes()

    def keeper(name: str) -> Callable[..., None]:
        def keep(pattern: Tensor, hook: object) -> None:
            for scores, made in reversed(watch.calls):
                if made.numel() // made.shape[-1] == pattern.shape[:-1].numel() and made.shape[-1] >= pattern.shape[-1]:
                    # More sources may share the softmax: an encoder's behind a decoder's own.
                    rows = [x.reshape(*pattern.shape[:-1], -1)[..., : pattern.shape[-1]] for x in (scores, made)]
                    if _same(rows[1], pattern):
                        activations[name] = rows[0]
                        return

        return keep

    wanted = [name for name in names if name.endswith(SCORES)]
    if not wanted:
        yield
        return
    with watch, twin.hooks(fwd_hooks=[(f"{name.removesuffix(SCORES)}{PATTERN}", keeper(name)) for name in wanted]):
        yield


class _Softmaxes(TorchFunctionMode):
    """Remembers what the last calls of softmax read and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: deque[tuple[Tensor, Tensor]] = deque(maxlen=_CALLS)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "softmax":
            self.calls.append(((*args, *(kwargs or {}).values())[0], made))
        return made


def _same(made: Tensor, pattern: Tensor) -> bool:
    """Is a pattern what a softmax gave, up to the rounding of a cast?"""
    eps = max(torch.finfo(made.dtype).eps, torch.finfo(pattern.dtype).eps)
    return bool(((made - pattern).abs() <= eps * made.abs()).all())
