"""Where heads and neurons write: a hook point for every sublayer, in whatever stack of the network it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from allheads.models.locations import Location
from allheads.twin.labels import Kind, Label
from allheads.twin.twin import TwinBridge

#: Kinds that write a number each; names of their sublayers end so.
SCALARS = ("N", "F")


@dataclass(frozen=True)
class Site:
    """The ``count`` heads, or neurons, of one sublayer, which write side by side: ``A``, ``X`` or ``N`` by `kind`.

    The latents of a sparse autoencoder, ``F``, and its error, ``R``, are such, too, at a point of their own, ``at``.

    What they write passes ``point``: ``[batch pos head d_head]``, or ``[batch pos d_mlp]``. Where heads of neurons were
    edited, these have no activation in common, and their heads write ``[batch pos head 1]``: ``parts`` for each.
    """

    location: Location
    kind: Kind
    count: int
    parts: int | None = None
    at: str = ""

    @property
    def scalar(self) -> bool:
        """Does each write a number times a direction, as neurons and latents do? Heads and errors write vectors."""
        return self.kind in SCALARS

    @property
    def name(self) -> str:
        """What its labels begin with: ``L3.A``, ``L3.M2.N``, ``DL3.X``."""
        return f"{self.location.stem}.{self.kind}"

    @property
    def point(self) -> str:
        """Where it writes."""
        return (
            self.at or f"{self.location.prefix}{'hook_post' if self.kind == 'N' and self.parts is None else 'hook_z'}"
        )

    @property
    def width(self) -> int:
        """How many write there."""
        return self.count * (self.parts or 1)

    def entries(self, index: int) -> list[int]:
        """Which of these make one head or neuron."""
        return list(range(index, self.width, self.count))

    def seen(self, written: Tensor) -> Tensor:
        """What passed the point, ``[batch pos head d_head]`` or ``[batch pos neuron]``, or a neuron's heads instead."""
        if self.at:
            return written
        written = by_head(written, self.width)
        return written[..., 0] if self.kind == "N" and written.ndim == 4 else written

    def summed(self, values: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows count"]:
        """The sum over each neuron's heads."""
        return values if self.parts is None else values.unflatten(-1, (self.parts, self.count)).sum(-2)

    @property
    def stack(self) -> str:
        """The stack of layers whose stream it writes into."""
        return self.location.stack

    def label(self, index: int) -> Label:
        """The label of one of them."""
        return Label(self.location.stem, self.kind, index)


def by_head(written: Tensor, count: int) -> Tensor:
    """What ``count`` heads write, ``[batch pos head d_head]``, where the bridge may show it in other pieces.

    Columns stand head by head. Anything else is returned as it is.

    >>> import torch
    >>> by_head(torch.zeros(1, 3, 8, 4), 4).shape
    torch.Size([1, 3, 4, 8])
    """
    if written.ndim != 4 or count == 0 or written.shape[2:].numel() % count:
        return written
    return written.reshape(*written.shape[:2], count, -1)


@contextmanager
def prompts_apart(twin: TwinBridge) -> Iterator[Callable[..., Tensor]]:
    """A view of what passes a hook point while the twin runs, prompt by prompt: ``[batch pos ...]``.

    Experts lay the rows of all prompts end to end, ``[1 batch*pos ...]``. ``axis`` is where positions are.
    """
    batch = 1

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal batch
        ids = [kwargs.get(name) for name in ("input_ids", "inputs_embeds", "decoder_input_ids")]
        batch = next((len(value) for value in (*ids, *args, *kwargs.values()) if isinstance(value, Tensor)), 1)

    def apart(value: Tensor, axis: int = 1) -> Tensor:
        if len(value) != 1 or batch == 1 or value.shape[axis] % batch:
            return value
        return value.unflatten(axis, (batch, -1)).movedim(axis, 0).squeeze(1)

    handle = twin.original_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield apart
    finally:
        handle.remove()


def sites(twin: TwinBridge) -> list[Site]:
    """Every sublayer of heads or neurons, layer by layer: attention first, then neurons."""
    return list(_sites(twin))


def _sites(twin: TwinBridge) -> Iterator[Site]:
    attention = [Site(layer.location, layer.kind, layer.n_heads) for layer in twin.index.attention.values()]
    neurons = [
        Site(layer.location, "N", layer.bank.d_mlp, layer.bank.gates.heads if layer.bank.edited else None)
        for layer in twin.layers
    ]
    order = dict.fromkeys((site.stack, site.location.layer) for site in (*attention, *neurons))
    for stack, layer in order:
        yield from (s for s in (*attention, *neurons) if (s.stack, s.location.layer) == (stack, layer))
