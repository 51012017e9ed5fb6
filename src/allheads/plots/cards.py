r"""Cards: what a head or a neuron reads and writes, in tokens, and how exact it is.

A neuron's card is about its weights: the embeddings that open its gate and raise its value, and the logits that its
output weights promote (`allheads.weights`). An ordinary head's is about a text: what it wrote at one position, as
logits; what it looked at is its pattern. Its heads are the source's own, so its bound is 0; a neuron's heads write
what the neuron writes, in exact arithmetic, to within ``max_error * scale(t) * |u| * |w_out|`` (the 2-norm; u = 1 for a
plain neuron), the largest over the text's tokens here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.heads.bank import HeadBank
from allheads.models.attention import read_attention
from allheads.plots.hook_values import hook_values
from allheads.plots.packing import short
from allheads.plots.token_names import visible
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import Wiring, read_wiring
from allheads.weights.neuron import SIDES, neuron_circuits
from allheads.weights.vocabulary import TokenValue, extreme_tokens, write_logits

#: Tokens on each side of a card.
_TOKENS = 8

Card = dict[str, Any]


@torch.no_grad()
def cards(twin: TwinBridge, tokens: Int[Tensor, "1 pos"], positions: Mapping[str, int]) -> dict[str, Card]:
    """Cards by label, for ordinary heads and whole neurons; ``positions`` says where each matters most.

    Neurons whose heads were edited have none: no weights are those of a whole one.

    Raises `AllHeadsError` where weights cannot be read through the embeddings, as `allheads.weights.circuits` does.
    """
    wiring = read_wiring(twin)
    layers: dict[tuple[str, int], list[Label]] = defaultdict(list)
    for label in map(Label.parse, positions):
        if label.kind == "N" and twin.banks[label.layer].edited is not None:
            continue
        layers[label.kind, label.layer].append(label)
    points = {
        (kind, layer): [f"blocks.{layer}.attn.hook_z"] if kind == "A" else _neuron_points(twin.banks[layer], layer)
        for kind, layer in layers
    }
    values = hook_values(twin, tokens, [name for names in points.values() for name in names])
    found: dict[str, Card] = {}
    for (kind, layer), labels in layers.items():
        seen = [values[name][0] for name in points[kind, layer]]
        if kind == "A":
            found |= _head_cards(wiring, seen[0], [(label, positions[str(label)]) for label in labels])
        else:
            found |= _neuron_cards(wiring, seen, labels)
    return found


def _neuron_points(bank: HeadBank, layer: int) -> list[str]:
    return [f"blocks.{layer}.mlp.hook_{name}" for name in ("post", "pre", *["pre_linear"] * bank.gated)]


def _neuron_cards(
    wiring: Wiring, seen: Sequence[Float[Tensor, "pos d_mlp"]], labels: Sequence[Label]
) -> dict[str, Card]:
    """Cards of one layer's neurons; ``seen`` are their outputs, preactivations, and values where they are gated."""
    branch, neurons = wiring.branch(labels[0]), [label.index for label in labels]
    bank = wiring.twin.banks[labels[0].layer]
    post, t, *values = (activations[:, neurons].double() for activations in seen)
    length = bank.W_out[neurons].detach().double().norm(dim=1).cpu()
    bounds = (bank.gates.bound(t) * (values[0].abs() if values else 1.0) * length).amax(0).tolist()
    sizes = (post.abs() * length).amax(0).tolist()
    circuits = neuron_circuits(wiring, branch, neurons, _TOKENS)
    return {
        circuit.label: {side: _shown(getattr(circuit, side)) for side in SIDES}
        | {"bound": bound, "size": size, "activations": [short(value, 3) for value in activations]}
        for circuit, bound, size, activations in zip(circuits, bounds, sizes, post.T.tolist(), strict=True)
    }


def _head_cards(
    wiring: Wiring, z: Float[Tensor, "pos head d_head"], heads: Sequence[tuple[Label, int]]
) -> dict[str, Card]:
    """Cards of one layer's ordinary heads, each at its position."""
    layer = heads[0][0].layer
    W_O = read_attention(wiring.twin, layer).W_O.cpu().to(z)
    written = torch.stack([z[position, label.index] @ W_O[label.index] for label, position in heads])
    logits = write_logits(wiring, wiring.branch(heads[0][0]), written)
    most, least = extreme_tokens(wiring.twin, logits, _TOKENS)
    return {
        str(label): {
            "promotes": _shown(promotes),
            "suppresses": _shown(suppresses),
            "bound": 0.0,
            "size": float(output.norm()),
            "at": position,
        }
        for (label, position), output, promotes, suppresses in zip(heads, written, most, least, strict=True)
    }


def _shown(values: Sequence[TokenValue]) -> list[list[str]]:
    return [[visible(value.text), f"{value.value:.3g}"] for value in values]
