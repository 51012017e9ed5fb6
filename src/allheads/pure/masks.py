"""What positions alone do to patterns: which keys a query sees, and tables of offsets by distance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allheads.models.observe import evaluating, run_bridge
from allheads.pure.streams import texts
from allheads.twin.sites import Site
from allheads.twin.twin import TwinBridge

#: Positions of a text that shows where masks end, of a shorter one, and of windows that are shrunk in this.
LONGEST, SHORT, SHRUNK = 640, 24, 8


@dataclass(frozen=True)
class Masks:
    """Which keys are visible, by sublayer, in a text that is longer than its window, or than its shrunk window.

    ``tables`` are offsets by distance, key minus query from ``1 - n_ctx``, that modules of the network compute.
    """

    visible: Mapping[str, Bool[Tensor, "query key"]]
    shrunk: Mapping[int, Mapping[str, Bool[Tensor, "query key"]]]
    tables: list[Float[Tensor, "head distance"]]
    n_ctx: int

    @classmethod
    def of(cls, twin: TwinBridge, sites: list[Site], n_ctx: int) -> Masks:
        """Run the twin on a text that is a little longer than every window that it declares.

        Longer windows than such a text has are shrunk for a while: who sees less has that window.
        """
        windows = {value for _, _, value in _windows(twin.original_model) if value < n_ctx}
        length = min(n_ctx, 2 + max([SHORT - 2, *(window for window in windows if window < LONGEST)]))
        shrunk = {}
        for window in sorted(window for window in windows if window >= LONGEST):
            with _shrink(twin.original_model, window):
                shrunk[window] = _visible(twin, sites, SHORT)
        return cls(_visible(twin, sites, length), shrunk, list(_tables(twin.original_model, n_ctx)), n_ctx)

    def window(self, name: str) -> int | None:
        """Where the mask of a sublayer ends."""
        far, length = _far(self.visible[name])
        if far < length:
            return far
        for window, visible in self.shrunk.items():
            far, length = _far(visible[name])
            if far < length:
                return window + far - SHRUNK
        return None


def _far(visible: Bool[Tensor, "query key"]) -> tuple[int, int]:
    """How far a query sees, itself included, and how far it could."""
    distance = (torch.arange(visible.shape[0])[:, None] - torch.arange(visible.shape[1])).abs()
    return int(distance[visible].max()) + 1, max(visible.shape)


def _visible(twin: TwinBridge, sites: list[Site], length: int) -> dict[str, Bool[Tensor, "query key"]]:
    found: dict[str, Tensor] = {}
    points = {f"{site.location.prefix}hook_pattern": site.name for site in sites}

    def keep(pattern: Tensor, hook: Any) -> None:
        found[points[hook.name]] = (pattern > 0).flatten(0, -3).any(0)

    hooks = [(point, keep) for point in points if point in twin.hook_dict]
    with torch.no_grad(), evaluating(twin), twin.hooks(fwd_hooks=hooks):
        run_bridge(twin, texts(twin, length))
    return found


def _windows(network: nn.Module) -> Iterator[tuple[Any, str, int]]:
    """Numbers that modules and their configurations call windows or chunks: whose, their name, and how many."""
    configs = {id(config): config for module in network.modules() if (config := getattr(module, "config", None))}
    for owner in (*network.modules(), *configs.values()):
        for name, value in list(vars(owner).items()):
            if type(value) is int and value > 0 and name.endswith(("window", "window_size", "chunk_size")):
                yield owner, name, value


@contextmanager
def _shrink(network: nn.Module, window: int) -> Iterator[None]:
    """Let a network have short windows in the place of these for a while."""
    changed = [(owner, name) for owner, name, value in _windows(network) if value == window]
    try:
        for owner, name in changed:
            setattr(owner, name, SHRUNK)
        yield
    finally:
        for owner, name in changed:
            setattr(owner, name, window)


def _tables(network: nn.Module, n_ctx: int) -> Iterator[Float[Tensor, "head distance"]]:
    """Offsets for key minus query from ``1 - n_ctx``, of modules that compute relative biases as T5 does."""
    module: Any
    for module in network.modules():
        if hasattr(module, "compute_bias") and getattr(module, "has_relative_attention_bias", False):
            try:
                behind, ahead = module.compute_bias(n_ctx, 1)[0, :, :, 0], module.compute_bias(1, n_ctx)[0, :, 0]
            except TypeError:  # attention over blocks takes their length
                continue
            yield torch.cat([behind.detach().flip(-1)[:, :-1], ahead.detach()], -1)
