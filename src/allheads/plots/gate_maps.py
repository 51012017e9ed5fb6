r"""Gates: how far each neuron is open at each token, and how much it writes.

A neuron is one or more heads; its *gate* here is the pattern on self of one of them: of those that open as
the preactivation grows, the one with the fewest bias tokens, and of several the one closest to half open at 0.
With one bias token it is a logistic function of the preactivation, exactly: sigma(t) for SiLU, sigma(s g) with s
close to 1 for SwiGLU. What the neuron writes is the sum over its heads, ``sum_h z_h W_O[h]``, and its size the
norm of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.gates.opening import gate_part
from allheads.heads.bank import HeadBank
from allheads.plots.hook_values import hook_values
from allheads.plots.picture import Picture
from allheads.plots.style import heat_map
from allheads.plots.token_names import token_names
from allheads.twin.labels import Label
from allheads.twin.prompt import Texts, one_row
from allheads.twin.twin import TwinBridge, require_twin

#: Neurons of a layer that are drawn.
TOP = 24


@dataclass(frozen=True)
class NeuronGates:
    """The neurons of a layer on one text: each neuron's gate in [0, 1], and the norm of what it writes."""

    layer: int
    gate: Float[Tensor, "pos d_mlp"]
    size: Float[Tensor, "pos d_mlp"]


def gates(
    twin: TwinBridge, tokens: Texts, layer: int | None = None, *, by: str = "contribution", top: int = TOP
) -> Picture:
    """How far neurons are open at each token: a layer's neurons, or the mean of each layer without one.

    Neurons come ``by`` their ``contribution``, the largest size of what they write at any token, or their mean
    ``openness``; the first ``top`` of them are drawn.

    Raises `AllHeadsError` for a layer without an MLP of its own, another order, or fewer than one neuron.

    >>> import allheads as ah
    >>> ah.plots.gates(twin, "The cat sat on the mat.", 3).save("gates.html").name
    'gates.html'
    """
    if by not in ("contribution", "openness") or top < 1:
        raise AllHeadsError("by='contribution' or 'openness', and top of 1 or more", f"{by!r}, {top}", "Change it.")
    row = one_row(require_twin(twin), tokens)
    names = token_names(twin, row)
    if layer is None:
        return mean_gate_map(neuron_gates(twin, row, list(mlps(twin))), names)
    return neuron_map(neuron_gates(twin, row, [layer])[0], names, top, by)


def neuron_gates(twin: TwinBridge, tokens: Int[Tensor, "1 pos"], layers: Sequence[int]) -> list[NeuronGates]:
    """Gates and sizes of every neuron in these layers, from one run.

    Raises `AllHeadsError` for a layer that is not there, or has experts.
    """
    banks = mlps(twin)
    if not banks:
        stems = ", ".join(dict.fromkeys(layer.location.stem for layer in twin.layers))
        raise AllHeadsError("layers with one MLP each", f"banks at {stems}"[:200], "Use ah.plots.attention or graph.")
    if outside := [layer for layer in layers if layer not in banks]:
        raise AllHeadsError(
            f"a layer from {min(banks)} to {max(banks)}, with one MLP", f"{outside[0]}", "Layers count from 0."
        )
    points = {layer: [f"blocks.{layer}.mlp.hook_{name}" for name in ("pattern_self", "z")] for layer in layers}
    values = hook_values(twin, tokens, [name for names in points.values() for name in names])
    return [_layer_gates(layer, banks[layer], *(values[name][0] for name in points[layer])) for layer in layers]


def mlps(twin: TwinBridge) -> dict[int, HeadBank]:
    """The banks that are the whole MLP of a layer, by layer: no experts, no towers."""
    return {
        layer.location.layer: layer.bank
        for layer in twin.layers
        if layer.location.name == f"blocks.{layer.location.layer}.mlp"
    }


def _layer_gates(
    layer: int, bank: HeadBank, pattern: Float[Tensor, "head pos"], z: Float[Tensor, "pos head 1"]
) -> NeuronGates:
    """The size in float64: the heads of a neuron nearly cancel where it is closed."""
    start = gate_part(bank.gates) * bank.d_mlp
    values = z[..., 0].double().unflatten(1, (-1, bank.d_mlp))
    weights = bank.W_O.as_subclass(Tensor)[:, 0].cpu().double().unflatten(0, (-1, bank.d_mlp))
    products = torch.einsum("h n d, i n d -> n h i", weights, weights)
    size = torch.einsum("p h n, n h i, p i n -> p n", values, products, values).clamp(min=0).sqrt()
    return NeuronGates(layer, pattern[start : start + bank.d_mlp].T, size.float())


def mean_gate_map(layers: Sequence[NeuronGates], names: Sequence[str]) -> Picture:
    """Layers against tokens, coloured from the least to the most open."""
    mean = torch.stack([gates.gate.mean(1) for gates in layers])
    drawn = heat_map(
        mean,
        "Mean gate of all neurons of a layer",
        columns=("token", names),
        rows=("layer", [f"L{gates.layer}" for gates in layers]),
        value="mean gate",
    )
    return drawn.update_traces(zmin=float(mean.min()), zmax=float(mean.max()))


def neuron_map(gates: NeuronGates, names: Sequence[str], top: int = TOP, by: str = "contribution") -> Picture:
    """The neurons of a layer that write most at any one token, or are most open on average, the first at the top.

    Hovering tells how much each writes.
    """
    largest = gates.size.amax(0) if by == "contribution" else gates.gate.mean(0)
    chosen = largest.topk(min(top, len(largest))).indices.tolist()
    drawn = heat_map(
        gates.gate[:, chosen].T,
        f"Layer {gates.layer}",
        columns=("token", names),
        rows=("neuron", [str(Label(f"L{gates.layer}", "N", neuron)) for neuron in chosen]),
        value="gate",
    )
    heat = drawn.data[0]
    heat.customdata = gates.size[:, chosen].T.numpy()
    heat.hovertemplate = f"size of its output %{{customdata:.3g}}<br>{heat.hovertemplate}"
    return drawn.update_yaxes(autorange="reversed")
