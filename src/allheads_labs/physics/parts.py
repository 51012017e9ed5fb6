"""What the physics lab measures, part by part; every part is plain JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from allheads import TwinBridge
from allheads.models.attention import read_attention
from allheads.progress import bar
from allheads_labs.physics.climbing import climbing
from allheads_labs.physics.fields import HeadField
from allheads_labs.physics.fitted import explained
from allheads_labs.physics.memories import key_share, memories
from allheads_labs.physics.paths import Trajectories, trajectories
from allheads_labs.physics.potentials import Potential, potentials
from allheads_labs.physics.probing import probes, spread_windows
from allheads_labs.physics.segments import angles, basis, overlaps, random_segments


@dataclass(frozen=True)
class Size:
    """How much is measured: layers, ``prompts`` of ``prompt`` tokens, ``windows`` of ``context`` tokens."""

    layers: tuple[int, ...]
    prompts: int
    prompt: int
    windows: int
    context: int
    seeds: int = 5

    @classmethod
    def of(cls, twin: TwinBridge, quick: bool, seeds: int) -> Size:
        """Everything in the full run, three layers and little text in the quick one."""
        last = len(twin.banks) - 1
        if quick:
            return cls(tuple(sorted({0, last // 2, last})), 2, 16, 5, min(48, twin.cfg.n_ctx), seeds)
        return cls(tuple(range(last + 1)), max(5, seeds), 64, 96, min(128, twin.cfg.n_ctx), seeds)


def prompts(twin: TwinBridge, size: Size) -> Int[Tensor, "prompt pos"]:
    """Beginnings of pieces of Python's documentation."""
    return spread_windows(twin, context=size.context, count=max(5, size.prompts))[: size.prompts, : size.prompt]


def gradients(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """Closed gradients against autograd: random heads in float64 by seed, and the twin's own in its dtype."""
    heads: list[tuple[float, float, float]] = []
    neurons: list[tuple[float, float, float]] = []
    ids = prompts(twin, size)[:1]
    draw = torch.Generator().manual_seed(0)
    for layer in bar("Gradients", size.layers):
        bank = twin.banks[layer]
        some = torch.randint(bank.d_mlp, (4,), generator=draw).tolist()
        labels = [f"L{layer}.A{i}" for i in range(len(read_attention(twin, layer).W_Q))]
        labels += [f"L{layer}.N{i}.{part}" for i in some for part in range(bank.gates.heads)]
        for found in potentials(twin, ids, labels):
            (neurons if ".N" in found.label else heads).append(_identity(found))
    return {
        "random": [random_identity(seed) for seed in range(size.seeds)],
        "heads": [max(each[i] for each in heads) for i in range(2)],
        "neurons": [max(each[i] for each in neurons) for i in range(2)],
        "count": [len(heads), len(neurons)],
        "own": statistics.median(each[2] for each in heads),
    }


def _identity(found: Potential) -> tuple[float, float, float]:
    """Relative errors of both terms, and how large the second is beside the first."""
    first, second = found.autograd()
    size = found.gradient.norm().clamp_min(1e-30)
    own = found.own.norm()
    errors = [float((a - b).norm() / n.clamp_min(1e-30)) for a, b, n in _terms(found, first, second)]
    return errors[0], errors[1], float(own / size)


def _terms(found: Potential, first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [(first, found.gradient, found.gradient.norm()), (second, found.own, found.own.norm())]


def random_identity(seed: int, heads: int = 10, pos: int = 9, d_model: int = 24, d_head: int = 8) -> float:
    """The largest error of both terms, absolute, over random heads in float64 with biases, by turns with rotary.

    >>> random_identity(0) < 1e-10
    True
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    worst = 0.0
    for number in range(heads):
        rotary = [None, torch.rand(d_head // 2, generator=draw), torch.rand(d_head // 4, generator=draw)][number % 3]
        x, visible = normal(pos, d_model), torch.ones(pos, pos).tril().bool()
        weights = (normal(d_model, d_head), normal(d_model, d_head), normal(d_head), normal(d_head))
        field = HeadField(*weights, d_head**-0.5, rotary, x, visible)
        scores = field.scores(x, x)
        a = scores.softmax(-1)
        found = Potential("", field, x, scores.logsumexp(-1), a, field.pull(a), field.own_pull(a))
        worst = max(worst, *(float((one - two).abs().max()) for one, two, _ in _terms(found, *found.autograd())))
    return worst


@torch.no_grad()
def memory_shares(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """The share of OV that M explains for every head, for random heads, and with the keys of other heads."""
    n_heads, d_model, d_head = read_attention(twin, 0).W_K.shape
    found = list(memories(twin, size.layers))
    shares = [[each.share for each in found[i : i + n_heads]] for i in range(0, len(found), n_heads)]
    same, other, chance = [], [], []
    reads = [read_attention(twin, layer) for layer in size.layers]
    for read in bar("Memory", reads):
        W_K, W_V, W_O = (W.float() for W in (read.W_K, read.W_V, read.W_O))
        table = key_share(W_K[:, None], W_V, W_O)
        # With grouped queries several heads have the same keys.
        apart = (W_K[:, None] != W_K).flatten(2).any(-1)
        same += table[apart].tolist()
    for seed in range(size.seeds):
        draw = torch.Generator().manual_seed(seed)
        order = (torch.arange(len(reads)) + torch.randint(1, max(2, len(reads)), (1,), generator=draw)) % len(reads)
        pairs = [(reads[int(a)].W_K, read) for a, read in zip(order, reads, strict=True)]
        other.append(_mean(torch.stack([key_share(W_K.float(), r.W_V.float(), r.W_O.float()) for W_K, r in pairs])))
        random = [
            torch.randn(n_heads, *shape, generator=draw) for shape in ((d_model, d_head),) * 2 + ((d_head, d_model),)
        ]
        chance.append(key_share(*random).tolist())
    return {
        "layers": list(size.layers),
        "shares": shares,
        "expected": d_head / d_model,
        "random": chance,
        "same_layer": statistics.mean(same) if same else None,
        "other_layer": other,
        "condition": statistics.median(each.condition for each in found),
    }


@torch.no_grad()
def motion(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """Do heads move along the gradient, and how much of what they write follows from it?"""
    climb = climbing(twin, prompts(twin, size), size.layers, size.seeds)
    ids = spread_windows(twin, context=size.context, count=max(6, size.windows // 4))
    shares = explained(twin, ids, size.layers, size.seeds)
    return {
        "layers": list(size.layers),
        "cosine": climb.held.mean(0).tolist(),
        "cosine_by_prompt": climb.held.mean((1, 2)).tolist(),
        "whole_by_prompt": climb.whole.mean((1, 2)).tolist(),
        "other_by_seed": climb.other.mean((0, 2, 3)).tolist(),
        "size_by_prompt": climb.held.abs().mean((1, 2)).tolist(),
        "other_size_by_seed": climb.other.abs().mean((0, 2, 3)).tolist(),
        "memory": shares.memory.tolist(),
        "gradient": shares.gradient.tolist(),
        "chance": shares.chance.mean(0).tolist(),
        "chance_by_seed": shares.chance.mean((1, 2)).tolist(),
        "ahead": _mean((shares.gradient > shares.chance.amax(0)).double()),
    }


def paths(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """Lengths and turns of steps, who pushes, and the potential of heads away from their own layer; by prompt."""
    rows = []
    for seed, row in enumerate(prompts(twin, size)):
        found = trajectories(twin, row)
        energies = {}
        for layer in bar(f"Paths of prompt {seed}", size.layers):
            # By head; the first token sees itself only.
            energies[layer] = (found.energy(layer) / found.heads.shape[1])[:, 1:].mean(1).tolist()
        rows.append(_path(found, seed) | {"energy": _away(energies)})
    return {"prompts": rows}


def _away(energies: dict[int, list[float]]) -> dict[str, float]:
    """The mean potential some points before or after a head's own layer, less that at its own."""
    found = {}
    for offset in (-8, -4, -2, -1, 1, 2, 4, 8):
        away = [row[layer + offset] - row[layer] for layer, row in energies.items() if 0 <= layer + offset < len(row)]
        if away:
            found[str(offset)] = statistics.mean(away)
    return found


def _path(found: Trajectories, seed: int) -> dict[str, Any]:
    steps, lengths = found.steps[:, 1:], found.lengths[:, 1:]
    order = torch.randperm(steps.shape[1], generator=torch.Generator().manual_seed(seed))
    chance = torch.cosine_similarity(steps[:-1], steps[1:, order], dim=-1).acos().rad2deg()
    pushes = torch.cat([found.heads, found.neurons], 1)[..., 1:]
    ranked = pushes.sort(dim=1, descending=True).values.cumsum(1)
    half = (ranked < lengths[:, None] / 2).sum(1) + 1
    return {
        "lengths": lengths.median(1).values.tolist(),
        "turns": found.turns[:, 1:].median(1).values.tolist(),
        "turn": float(found.turns[:, 1:].median()),
        "turn_of_others": float(chance.median()),
        "neurons": (found.neurons[..., 1:].sum(1) / lengths).median(1).values.tolist(),
        "half": half.double().median(1).values.tolist(),
        "against": (pushes.abs().sum(1) / lengths).median(1).values.tolist(),
        "explained": found.explained.tolist(),
    }


@torch.no_grad()
def segments(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """Overlaps of what heads write by how far layers are apart, against random segments; neurons inside them."""
    found = overlaps(twin, size.layers)
    d_head, d_model = read_attention(twin, 0).W_O.shape[1:]
    apart = [each for each in (0, 1, 2, 4, 8, 16, 24) if len(found.pairs(each))]
    random, longest = [], []
    for seed in range(size.seeds):
        some = random_segments(12, d_head, d_model, seed)
        cosines = angles(some[:6], some[6:])
        random.append(_mean(cosines.square()))
        longest.append(_mean(cosines[..., 0]))
    spans = {layer: basis(read_attention(twin, layer).W_O.float()) for layer in size.layers}
    inside = [_largest_share(own, twin.banks[layer].weights().W_O[0].float()) for layer, own in spans.items()]
    upper = found.mean.triu(1)
    best = upper.flatten().topk(5)
    n = len(upper)
    return {
        "chance": found.chance,
        "by_distance": {str(each): _mean(found.pairs(each)) for each in apart},
        "largest": _mean(found.largest[torch.ones(n, n).triu(1).bool()]),
        "random": random,
        "random_largest": longest,
        "pairs": [
            (found.label(i // n), found.label(i % n), value)
            for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        "neurons": statistics.mean(inside),
        "neurons_chance": _best_of_random(list(spans.values()), size.seeds),
    }


def _largest_share(spans: Tensor, lines: Tensor) -> float:
    """The largest share of a line's square in one of a layer's segments, on average over lines."""
    parts = torch.einsum("hed,nd->hne", spans, lines).square().sum(-1) / lines.square().sum(-1)
    return float(parts.amax(0).mean())


def _best_of_random(layers: Sequence[Tensor], seeds: int) -> list[float]:
    """The same for random lines, by seed."""
    found = []
    for seed in range(seeds):
        lines = torch.randn(256, layers[0].shape[-1], generator=torch.Generator().manual_seed(seed))
        found.append(statistics.mean(_largest_share(spans, lines) for spans in layers))
    return found


def carried(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """What probes read off heads, beside majority, shuffled labels, random directions and a table of tokens."""
    ids = spread_windows(twin, context=size.context, count=size.windows)
    found = probes(twin, ids, seeds=size.seeds, layers=size.layers)
    return {
        each.task: {
            "classes": len(each.classes),
            "layers": list(each.layers),
            "top": each.top(5),
            "best_by_fold": _best(each.heads),
            "mean_by_fold": each.heads.mean((1, 2)).tolist(),
            "by_layer": each.heads.mean((0, 2)).tolist(),
            "best_by_layer": each.heads.mean(0).amax(1).tolist(),
            "shuffled_by_seed": each.shuffled.mean((1, 2)).tolist(),
            "shuffled_best_by_seed": each.shuffled.amax((1, 2)).tolist(),
            "stream_by_seed": each.stream.mean(1).tolist(),
            "stream_by_layer": each.stream.mean(0).tolist(),
            "majority_by_fold": each.chance.tolist(),
            "table_by_fold": each.table.tolist(),
        }
        for each in found
    }


def _best(heads: Tensor) -> list[float]:
    """Accuracy of the head that is best on average, by fold."""
    layer, head = divmod(int(heads.mean(0).argmax()), heads.shape[2])
    return heads[:, layer, head].tolist()


def _mean(values: Tensor | Sequence[float]) -> float:
    return float(torch.as_tensor(values).double().mean())


#: Name -> what it measures, in the order in which a run takes them.
PARTS: dict[str, Callable[[TwinBridge, Size], dict[str, Any]]] = {
    "gradients": gradients,
    "memory": memory_shares,
    "motion": motion,
    "paths": paths,
    "segments": segments,
    "probes": carried,
}
