"""One forward pass whose activations are kept in the graph, so that gradients at them can be taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.twin import TwinBridge


@dataclass
class ForwardCache:
    """The tensors of one forward pass, by hook point: ``activations``.

    Embeddings are leaves of its graph. Where it is ``cut``, heads and neurons are too: what they write is a leaf, and
    what they would have written, as a function of the leaves before them, is among ``uncut``. A gradient then knows
    direct paths only: along the stream, through no other head or neuron. Where it is ``empty``, leaves are zero.
    """

    twin: TwinBridge
    extra: tuple[str, ...] = ()
    cut: bool = False
    empty: bool = False
    leaves: dict[str, Tensor] = field(default_factory=dict)
    uncut: dict[str, Tensor] = field(default_factory=dict)
    activations: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> range:
        """Numbers of the layers."""
        return range(len(self.twin.layers))

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """What the stream begins with, ``[1 pos d_model]`` each."""
        width = self.leaves[EMBEDDINGS[0]].shape
        return {
            name: self.leaves[name] for name in EMBEDDINGS if name in self.leaves and self.leaves[name].shape == width
        }

    @property
    def heads(self) -> list[str]:
        """Where ordinary heads write, ``[1 pos head d_head]``, layer by layer."""
        return [f"blocks.{layer}.attn.hook_z" for layer in self.layers]

    @property
    def neurons(self) -> list[str]:
        """Where neurons write, ``[1 pos d_mlp]``, layer by layer."""
        return [f"blocks.{layer}.mlp.hook_post" for layer in self.layers]

    @property
    def streams(self) -> list[str]:
        """The stream before each layer, and after the last."""
        return [f"blocks.{layer}.hook_resid_pre" for layer in self.layers] + [self.end]

    @property
    def end(self) -> str:
        """The stream after the last layer."""
        return f"blocks.{self.layers[-1]}.hook_resid_post"

    @property
    def added(self) -> list[str]:
        """What attention and MLPs add to the stream: as many as `heads` and `neurons` together, in their order."""
        return [f"blocks.{layer}.hook_{part}_out" for part in ("attn", "mlp") for layer in self.layers]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what passes the hook points.

        Raises `AllHeadsError` for a network without one of them in every layer, or where layers differ.
        """
        known = self.twin.hook_dict
        needed = [*self.streams, *self.heads, *self.neurons, *self.added, *self.extra]
        missing = [name for name in (EMBEDDINGS[0], *needed) if name not in known]
        if missing:
            raise self._unread(f"without {missing[0]}")
        names = dict.fromkeys([*(name for name in EMBEDDINGS if name in known), *needed])
        with self.twin.hooks(fwd_hooks=[(name, self._recorder(name)) for name in names]):
            yield
        silent = [name for name in needed if name not in self.activations]
        if silent:
            raise self._unread(f"where nothing passes {silent[0]}")
        for layer, (head, neuron) in enumerate(zip(self.heads, self.neurons, strict=True)):
            counts = tuple(self.activations[name].shape[2] for name in (head, neuron))
            if counts != tuple(self.activations[name].shape[2] for name in (self.heads[0], self.neurons[0])):
                raise self._unread(f"with {counts[0]} heads and {counts[1]} neurons in layer {layer} alone")
            attention = self.twin.index.attention.get((f"L{layer}", "A"))
            if attention is not None and counts[0] != attention.n_heads:
                raise self._unread(f"whose {attention.n_heads} heads are shown as {counts[0]} at {head}")

    def _unread(self, how: str) -> AllHeadsError:
        return AllHeadsError(
            "a decoder or encoder with the same heads and neurons in every layer",
            f"{self.twin.cfg.architecture} {how}",
            "Its layers are of another kind: attribution does not read them yet.",
        )

    def _recorder(self, name: str) -> Callable[..., Tensor]:
        leaf = name in EMBEDDINGS or (self.cut and name in (*self.heads, *self.neurons))

        def record(value: Tensor, hook: object) -> Tensor:
            if leaf and value.is_floating_point():
                self.uncut[name] = value
                value = torch.zeros_like(value) if self.empty else value.detach().requires_grad_()
                self.leaves[name] = value
            self.activations[name] = value
            return value

        return record
