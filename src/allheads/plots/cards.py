r"""Cards: what a head or a neuron reads and writes, in tokens, and how exact it is.

A neuron's card is about its weights: the embeddings that open its gate and raise its value, and the logits that its
output weights promote (`allheads.weights`). An ordinary head's is about a prompt: what it wrote at one position, as
logits; what it looked at is its pattern. Its heads are the source's own, so its bound is 0; a neuron's heads write
what the neuron writes, in exact arithmetic, to within ``max_error * scale(t) * |u| * |w_out|`` (the 2-norm; u = 1 for a
plain neuron), the largest over the positions here. What cannot be read through the embeddings is left out, and said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.question import Question
from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.plots.hook_values import hook_values
from allheads.plots.packing import short
from allheads.plots.token_names import place_name, visible
from allheads.twin.labels import Label
from allheads.twin.sites import Site, sites
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import Wiring, read_wiring
from allheads.weights.neuron import SIDES, neuron_circuits
from allheads.weights.vocabulary import TokenValue, extreme_tokens, write_logits

#: Tokens on each side of a card.
_TOKENS = 8

Card = dict[str, Any]


@torch.no_grad()
def cards(question: Question, positions: Mapping[str, int]) -> dict[str, Card]:
    """Cards by label, for ordinary heads and whole neurons; ``positions`` says where each matters most.

    Neurons whose heads were edited have none: no weights are those of a whole one.
    """
    twin = question.twin
    wiring = _wiring(twin)
    by_site: dict[str, list[Label]] = defaultdict(list)
    for label in map(Label.parse, positions):
        if label.kind != "N" or _bank(twin, label).edited is None:
            by_site[f"{label.stem}.{label.kind}"].append(label)
    chosen = {site: by_site[site.name] for site in sites(twin) if site.name in by_site}
    points = {site: _points(site, twin) for site in chosen}
    values = hook_values(twin, question.inputs, [name for names in points.values() for name in names])
    found: dict[str, Card] = {}
    for site, labels in chosen.items():
        seen = [values[name] for name in points[site]]
        if site.kind == "N":
            found |= _neuron_cards(_bank(twin, labels[0]), [rows[0] for rows in seen], labels, wiring)
        else:
            z = site.seen(seen[0])[0]
            tokens = question.tokens_at(labels[0], len(z))
            for label in labels:
                position = positions[str(label)]
                at = place_name((label.stream, position), tokens[position])
                found[str(label)] = {"at": at, "bound": 0.0} | _head_card(label, z[position, label.index], wiring)
    return found


def _wiring(twin: TwinBridge) -> Wiring | AllHeadsError:
    """What lies between the parts, or why that cannot be said."""
    try:
        return read_wiring(twin)
    except AllHeadsError as reason:
        return reason


def _bank(twin: TwinBridge, label: Label) -> HeadBank:
    return twin.index.neurons[label.stem].bank


def _points(site: Site, twin: TwinBridge) -> list[str]:
    """Where heads write; or what neurons give, their preactivations, and their values where they are gated."""
    if site.kind != "N":
        return [site.point]
    gated = twin.index.neurons[site.location.stem].bank.gated
    return [f"{site.location.prefix}hook_{name}" for name in ("post", "pre", *["pre_linear"] * gated)]


def _neuron_cards(
    bank: HeadBank, seen: Sequence[Float[Tensor, "pos d_mlp"]], labels: Sequence[Label], wiring: Wiring | AllHeadsError
) -> dict[str, Card]:
    """Cards of one layer's neurons; ``seen`` are their outputs, preactivations, and values where they are gated."""
    neurons = [label.index for label in labels]
    post, t, *values = (activations[:, neurons].double() for activations in seen)
    length = bank.W_out[neurons].detach().double().norm(dim=1).cpu()
    bounds = (bank.gates.bound(t) * (values[0].abs() if values else 1.0) * length).amax(0).tolist()
    sizes = (post.abs() * length).amax(0).tolist()
    made: dict[str, Card] = {
        str(label): {"bound": bound, "size": size, "activations": [short(value, 3) for value in activations]}
        for label, bound, size, activations in zip(labels, bounds, sizes, post.T.tolist(), strict=True)
    }
    try:
        if isinstance(wiring, AllHeadsError):
            raise wiring
        for circuit in neuron_circuits(wiring, wiring.branch(labels[0]), neurons, _TOKENS):
            made[circuit.label] |= {side: _shown(getattr(circuit, side)) for side in SIDES}
            made[circuit.label]["unread"] = list(circuit.unread)
    except AllHeadsError as reason:
        for card in made.values():
            card["unread"] = [str(reason)]
    return made


def _head_card(label: Label, z: Float[Tensor, " d_head"], wiring: Wiring | AllHeadsError) -> Card:
    """What one ordinary head wrote, as logits."""
    made: Card = {}
    try:
        if isinstance(wiring, AllHeadsError):
            raise wiring
        branch = wiring.branch(label)
        if branch.attention is None:
            raise AllHeadsError("output weights of heads", f"{branch.name} without", "Its effect can be read.")
        written = z @ branch.attention.W_O[label.index].detach().cpu().to(z)
        made["size"] = float(written.norm())
        most, least = extreme_tokens(wiring.twin, write_logits(wiring, branch, written[None]), _TOKENS)
        made |= {"promotes": _shown(most[0]), "suppresses": _shown(least[0])}
    except AllHeadsError as reason:
        made["unread"] = [str(reason)]
    return made


def _shown(values: Sequence[TokenValue]) -> list[list[str]]:
    return [[visible(value.text), f"{value.value:.3g}"] for value in values]
