r"""Cards: what a head or a neuron reads and writes, in tokens, and how exact it is.

A neuron's card is about its weights: the embeddings that open its gate and raise its value, and the logits that its
output weights promote (`allheads.weights`). An ordinary head's is about a text: what it wrote at one position, as
logits; what it looked at is its pattern. Its heads are the source's own, so its bound is 0; a neuron's heads write
what the neuron writes, in exact arithmetic, to within ``max_error * scale(t) * |u| * |w_out|`` (the 2-norm; u = 1 for a
plain neuron), the largest over the text's tokens here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.models.attention import read_attention
from allheads.plots.activations import read
from allheads.plots.texts import visible
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import Wiring, read_wiring
from allheads.weights.neuron import neuron_circuits
from allheads.weights.vocabulary import TokenValue, top_tokens, write_logits

#: Tokens on each side of a card.
_TOKENS = 8
_SIDES = ("opens", "closes", "raises", "lowers", "promotes", "suppresses")

Card = dict[str, Any]


@torch.no_grad()
def cards(twin: TwinBridge, tokens: Int[Tensor, "1 pos"], places: Mapping[str, int]) -> dict[str, Card]:
    """Cards by label, for ordinary heads and whole neurons; ``places`` says at which position each matters most.

    Raises `AllHeadsError` where weights cannot be read through the embeddings, as `allheads.weights.circuits` does.
    """
    reader = _Reader(read_wiring(twin), tokens, places)
    found = {
        label: card for layer, some in _by_layer(places, "N").items() for label, card in reader.neurons(layer, some)
    }
    return found | {
        label: card for layer, some in _by_layer(places, "A").items() for label, card in reader.heads(layer, some)
    }


def _by_layer(names: Iterable[str], kind: str) -> dict[int, list[Label]]:
    found: dict[int, list[Label]] = defaultdict(list)
    for label in map(Label.parse, names):
        if label.kind == kind:
            found[label.layer].append(label)
    return found


class _Reader:
    """One run of the text, and the norms that everything is read through."""

    def __init__(self, wiring: Wiring, tokens: Tensor, places: Mapping[str, int]) -> None:
        self.wiring, self.twin, self.places = wiring, wiring.twin, places
        points = [f"blocks.{layer}.attn.hook_z" for layer in _by_layer(places, "A")]
        for layer in _by_layer(places, "N"):
            names = ("post", "pre", "pre_linear") if self.twin.banks[layer].gated else ("post", "pre")
            points += [f"blocks.{layer}.mlp.hook_{name}" for name in names]
        self.seen = dict(zip(points, read(self.twin, tokens, points), strict=True))

    def neurons(self, layer: int, labels: list[Label]) -> Iterator[tuple[str, Card]]:
        """Cards of a layer's neurons."""
        some = [label.index for label in labels]
        bank = self.twin.banks[layer]
        post, t, u = (self._of_neurons(layer, name, some) for name in ("post", "pre", "pre_linear"))
        size = bank.W_out[some].detach().double().norm(dim=1).cpu()
        bound = (bank.gates.bound(t) * (u.abs() if bank.gated else 1.0) * size).amax(0)
        largest = (post.abs() * size).amax(0)
        for at, circuit in enumerate(neuron_circuits(self.wiring, layer, some, _TOKENS)):
            sides = {side: _shown(getattr(circuit, side)) for side in _SIDES}
            yield (
                circuit.label,
                sides
                | {
                    "bound": float(bound[at]),
                    "size": float(largest[at]),
                    "activations": [float(f"{value:.3g}") for value in post[:, at].tolist()],
                },
            )

    def _of_neurons(self, layer: int, name: str, some: list[int]) -> Float[Tensor, "pos neuron"]:
        found = self.seen.get(f"blocks.{layer}.mlp.hook_{name}")
        return torch.zeros(0) if found is None else found[0, :, some].double()

    def heads(self, layer: int, labels: list[Label]) -> Iterator[tuple[str, Card]]:
        """Cards of a layer's ordinary heads."""
        z, W_O = self.seen[f"blocks.{layer}.attn.hook_z"], read_attention(self.twin, layer).W_O.cpu()
        at = [self.places[str(label)] for label in labels]
        written = torch.stack([z[0, p, each.index] @ W_O[each.index].to(z) for p, each in zip(at, labels, strict=True)])
        logits = write_logits(self.wiring, self.wiring.attention[layer], written)
        most, least = (top_tokens(self.twin, logits, _TOKENS, least=least) for least in (False, True))
        for place, label, write, promotes, suppresses in zip(at, labels, written, most, least, strict=True):
            yield (
                str(label),
                {
                    "promotes": _shown(promotes),
                    "suppresses": _shown(suppresses),
                    "bound": 0.0,
                    "size": float(write.norm()),
                    "at": place,
                },
            )


def _shown(values: list[TokenValue]) -> list[list[str]]:
    return [[visible(each.text), f"{each.value:.3g}"] for each in values]
