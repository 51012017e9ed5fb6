"""Norms that keep their scale: what makes a normalised network linear.

A norm ``x -> gain * s(x) * (x - mean) + shift`` with s frozen is linear, up to its shift. TransformerLens' hook points
for scales are not used: on the path that computes what the model does, a change there does not reach the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from allheads.errors import AllHeadsError
from allheads.models.compat import network_path, wrappers
from allheads.models.norms import Norm, known_norm, norm_modules


@dataclass
class FrozenNorm:
    """A norm whose scale is recorded when it first runs: ``gain * scale * (x - mean) + shift``."""

    module: nn.Module
    component: GeneralizedComponent | None
    norm: Norm | None = None
    scale: Float[Tensor, "batch pos 1"] | None = None
    shift: Float[Tensor, " d_model"] | None = None

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """The norm with its scale frozen, between the hook points of its component."""
        x = x if self.component is None else self.component.hook_in(x)
        if self.scale is None:
            self._record(x.detach())
            if torch.is_grad_enabled() and self.shift is not None:
                self.shift.requires_grad_()
        assert self.norm is not None and self.scale is not None
        wide = x.to(self.scale.dtype)
        # Some layers run all rows in one.
        scale = self.scale if x.ndim > 2 else self.scale.repeat(len(x) // len(self.scale), 1)
        out = (self.norm.gain.to(wide) * scale * self.norm.centre(wide) + self.shift).to(x.dtype)
        return out if self.component is None else self.component.hook_out(out)

    def _record(self, x: Tensor) -> None:
        """The scale is read off what the norm itself makes of the input, whatever its formula for it."""
        self.norm = known_norm(self.module, x.shape[-1])
        if self.norm is None:
            raise AllHeadsError(
                "norms that scale their input",
                f"a {type(self.module).__name__}",
                "It cannot be frozen: rule='gradient'.",
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.no_grad():
            self.shift = self.norm.shift.to(wide)
            direction = self.norm.gain.to(wide) * self.norm.centre(wide)
            written = self.module(x).to(wide) - self.shift
            size = direction.square().sum(-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
            self.scale = (written * direction).sum(-1, keepdim=True) / size


@contextmanager
def frozen_norms(body: nn.Module) -> Iterator[dict[str, FrozenNorm]]:
    """Let every norm of a bridged network keep, for a while, the scale that it has in its first run; by path."""
    norms: dict[str, FrozenNorm] = {}
    with ExitStack() as stack:
        components = wrappers(body)
        for path, module in norm_modules(body):
            component = components.get(id(module))
            norm = norms[network_path(path)] = FrozenNorm(module, component)
            stack.enter_context(_called_instead(component or module, norm))
        yield norms


@contextmanager
def _called_instead(module: nn.Module, function: Callable[..., Tensor]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = function
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
