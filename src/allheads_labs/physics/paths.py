r"""trajectories: the stream of every token from layer to layer, and which heads and neurons pushed it there.

Point l of a path is the stream before layer l, the last one is the end. A step is what a layer adds; the push of a
head or neuron is what it writes, along the step:

    step_l = sum_parts write,        push = write . step_l / ||step_l||,        sum of pushes = ||step_l||.

Pictures show streams as a norm sees them, divided by their root mean square: their length grows from layer to layer
and no reader sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads import AllHeadsError, Label, TwinBridge
from allheads.plots.principal_components import principal_components
from allheads.twin.capture import captured
from allheads.twin.prompt import position_in, prompt_ids, token_texts
from allheads.weights import Wiring, read_attention, read_wiring
from allheads_labs.physics.potentials import potentials
from allheads_labs.physics.segments import chosen_layers

#: How far the pushes may be from the length of a step, relative to it.
_REMAINDER = 1e-3


@dataclass(frozen=True)
class Push:
    """A head or neuron, and how far it moved a token along its step, in units of the stream."""

    label: str
    push: float


@dataclass(frozen=True)
class Trajectories:
    """Paths of the tokens of a prompt. Lengths and pushes in units of the stream, angles in degrees."""

    twin: TwinBridge
    ids: Int[Tensor, "1 pos"]
    tokens: list[str]
    stream: Float[Tensor, "point pos d_model"]
    #: In the three directions along which normed streams vary most, and the share of their variance in each.
    projected: Float[Tensor, "point pos 3"]
    explained: Float[Tensor, " 3"]
    heads: Float[Tensor, "layer head pos"]
    neurons: Float[Tensor, "layer neuron pos"]
    #: Pushes of what belongs to no head or neuron: biases of layers.
    rest: Float[Tensor, "layer pos"]

    @property
    def steps(self) -> Float[Tensor, "layer pos d_model"]:
        """What every layer adds."""
        return self.stream.diff(dim=0)

    @property
    def lengths(self) -> Float[Tensor, "layer pos"]:
        """How long the steps are."""
        return self.steps.norm(dim=-1)

    @property
    def turns(self) -> Float[Tensor, "turn pos"]:
        """The angle between a step and the next: 0 straight on, 90 what chance gives, 180 back."""
        cosines = torch.cosine_similarity(self.steps[:-1], self.steps[1:], dim=-1)
        return torch.rad2deg(cosines.clamp(-1, 1).acos())

    def pushed(self, position: int, layer: int, k: int = 5) -> list[Push]:
        """The k heads and neurons that moved a token most along its step in a layer, or most against it.

        Raises `AllHeadsError` for a position or a layer that is not there.
        """
        at = position_in(len(self.tokens), position)
        chosen_layers(self.twin, [layer])
        pushes = [
            Push(f"L{layer}.{kind}{index}", push)
            for kind, parts in (("A", self.heads), ("N", self.neurons))
            for index, push in enumerate(parts[layer, :, at].tolist())
        ]
        return sorted(pushes, key=lambda push: -abs(push.push))[:k]

    @torch.no_grad()
    def energy(self, where: str | int | Label) -> Float[Tensor, "point pos"]:
        """The potential of a head (``L3.A5``, ``L3.N812.0``) along the paths, or the sum over a layer's ordinary heads.

        A head reads in its own layer only. Here its keys stay as they are there, and the streams of all other points
        are put in the place of what it reads, through its own norm: a landscape, of which it sees one place.

        Raises `AllHeadsError` as `allheads_labs.physics.potential` does, and for a layer that is not there.
        """
        if isinstance(where, int):
            chosen_layers(self.twin, [where])
            labels: list[str | Label] = [f"L{where}.A{number}" for number in range(self.heads.shape[1])]
        else:
            labels = [where]
        label = self.twin.index.heads(labels[0])[0].label
        norm = self._wiring.branch(label).before
        reading = self.stream if norm is None else norm(self.stream)
        total = torch.zeros(reading.shape[:-1], dtype=reading.dtype)
        for potential in potentials(self.twin, self.ids, labels):
            total = total + potential.at(reading.to(potential.x)).to(total)
        return total

    @cached_property
    def _wiring(self) -> Wiring:
        return read_wiring(self.twin)


@torch.no_grad()
def trajectories(twin: TwinBridge, tokens: str | Tensor) -> Trajectories:
    """Where the tokens of a prompt go, layer by layer, and what pushes them; ordinary heads and neurons alike.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.

    Returns:
        `Trajectories`; the pushes of a step sum to its length within 1e-3 of it, or it is an error.

    Raises:
        AllHeadsError: a prompt that cannot be read, edited neurons, or layers that do not add to a stream exactly what
            their heads and neurons write: norms behind sublayers, multipliers of the residual.

    >>> paths = trajectories(twin, "Mary and John went to the store")  # doctest: +SKIP
    >>> paths.turns.median(), paths.pushed(-1, 12)  # doctest: +SKIP
    """
    ids = prompt_ids(twin, tokens)
    for layer, bank in enumerate(twin.banks):
        bank.require_shared("neurons whose heads share their weights", f"L{layer}")
    layers = range(len(twin.layers))
    streams = [*(f"blocks.{layer}.hook_resid_pre" for layer in layers), f"blocks.{layers[-1]}.hook_resid_post"]
    heads_at, neurons_at = ([f"blocks.{n}.{name}" for n in layers] for name in ("attn.hook_z", "mlp.hook_post"))
    written = captured(twin, ids, [*streams, *heads_at, *neurons_at])
    wide = torch.promote_types(written[streams[0]].dtype, torch.float32)
    stream = torch.stack([written[name][0].to(wide) for name in streams])
    pushes = [_pushes(twin, n, stream[n + 1] - stream[n], written[heads_at[n]], written[neurons_at[n]]) for n in layers]
    heads, neurons, rest = map(torch.stack, zip(*pushes, strict=True))
    lengths = stream.diff(dim=0).norm(dim=-1)
    off = ((heads.sum(1) + neurons.sum(1) + rest - lengths).abs() / lengths.clamp_min(1e-30)).amax(1)
    if not bool(off.max() <= _REMAINDER):
        raise AllHeadsError(
            "layers that add what their heads and neurons write",
            f"a remainder of {float(off.max()):.1e} of the step in layer {int(off.argmax())}",
            "Norms behind sublayers and multipliers of the residual are not read.",
        )
    projected, explained = principal(stream)
    return Trajectories(twin, ids, token_texts(twin, ids), stream, projected, explained, heads, neurons, rest)


def principal(stream: Float[Tensor, "point pos d_model"]) -> tuple[Tensor, Tensor]:
    """Normed streams in the three directions of their largest variance, and the share of it in each."""
    return principal_components(stream / stream.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30))


def _pushes(twin: TwinBridge, layer: int, step: Tensor, z: Tensor, post: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    read, weights = read_attention(twin, layer), twin.banks[layer].weights()
    along = step / step.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    heads = torch.einsum(
        "phe,hed,pd->hp", z[0].unflatten(-1, read.W_O.shape[:2]) if z.ndim == 3 else z[0], read.W_O, along
    )
    neurons = post[0].T * (weights.W_O[0] @ along.T)
    rest = torch.zeros_like(heads[0])
    for bias in (read.b_O, weights.b_O):
        rest = rest if bias is None else rest + along @ bias.to(along)
    return heads, neurons, rest
