"""What the physics lab measures, part by part; every part is plain JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from allheads import TwinBridge
from allheads.progress import bar
from allheads.weights import read_attention
from allheads_labs.physics.climbing import climbing, explained
from allheads_labs.physics.fields import HeadField
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
    errors: dict[str, list[tuple[float, ...]]] = {"heads": [], "neurons": []}
    ids, draw = prompts(twin, size)[:1], _seeded(0)
    for layer in bar("Gradients", size.layers):
        bank = twin.banks[layer]
        labels = [f"L{layer}.A{head}" for head in range(len(read_attention(twin, layer).W_Q))]
        neurons = torch.randint(bank.d_mlp, (4,), generator=draw).tolist()
        labels += [f"L{layer}.N{neuron}.{part}" for neuron in neurons for part in range(bank.gates.heads)]
        for potential in potentials(twin, ids, labels):
            errors["neurons" if ".N" in potential.label else "heads"].append(_relative_errors(potential))
    return {
        "random": [random_identity(seed) for seed in range(size.seeds)],
        **{kind: [max(column) for column in list(zip(*rows, strict=True))[:2]] for kind, rows in errors.items()},
        "count": [len(rows) for rows in errors.values()],
        "own": statistics.median(ratio for _, _, ratio in errors["heads"]),
    }


def _relative_errors(potential: Potential) -> tuple[float, ...]:
    """Relative errors of both terms of the gradient, and how large the second is beside the first."""
    terms = potential.gradient, potential.own
    sizes = [term.norm().clamp_min(1e-30) for term in terms]
    pairs = zip(potential.autograd(), terms, sizes, strict=True)
    return *(float((exact - term).norm() / size) for exact, term, size in pairs), float(terms[1].norm() / sizes[0])


def random_identity(seed: int, heads: int = 10, pos: int = 9, d_model: int = 24, d_head: int = 8) -> float:
    """The largest error of both terms, absolute, over random heads in float64 with biases, by turns with rotary.

    >>> random_identity(0) < 1e-10
    True
    """
    draw, worst = _seeded(seed), 0.0

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    for number in range(heads):
        rotary = [None, torch.rand(d_head // 2, generator=draw), torch.rand(d_head // 4, generator=draw)][number % 3]
        x, visible = normal(pos, d_model), torch.ones(pos, pos).tril().bool()
        weights = (normal(d_model, d_head), normal(d_model, d_head), normal(d_head), normal(d_head))
        field = HeadField(*weights, d_head**-0.5, rotary, x, visible)
        scores = field.scores(x, x)
        pattern = scores.softmax(-1)
        terms = field.pull(pattern), field.own_pull(pattern)
        exact = Potential("", field, x, scores.logsumexp(-1), pattern, *terms).autograd()
        worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(exact, terms, strict=True)))
    return worst


@torch.no_grad()
def memory_shares(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """The share of OV that M explains for every head, for random heads, and with the keys of other heads."""
    n_heads, d_model, d_head = read_attention(twin, 0).W_K.shape
    layers = map(partial(read_attention, twin), size.layers)
    weights = [(layer.W_K.float(), layer.W_V.float(), layer.W_O.float()) for layer in layers]
    known, count = list(memories(twin, size.layers)), len(size.layers)
    same, other, chance = [], [], []
    for W_K, W_V, W_O in bar("Memory", weights):
        # With grouped queries several heads have the same keys.
        apart = (W_K[:, None] != W_K).flatten(2).any(-1)
        same += key_share(W_K[:, None], W_V, W_O)[apart].tolist()
    shapes = ((d_model, d_head),) * 2 + ((d_head, d_model),)
    for draw in map(_seeded, range(size.seeds)):
        order = (torch.arange(count) + torch.randint(1, max(2, count), (1,), generator=draw)) % count
        pairs = zip(order.tolist(), weights, strict=True)
        other.append(_mean(torch.stack([key_share(weights[number][0], W_V, W_O) for number, (_, W_V, W_O) in pairs])))
        chance.append(key_share(*(torch.randn(n_heads, *shape, generator=draw) for shape in shapes)).tolist())
    return {
        "layers": list(size.layers),
        "shares": [[head.share for head in known[at : at + n_heads]] for at in range(0, len(known), n_heads)],
        "expected": d_head / d_model,
        "random": chance,
        "same_layer": statistics.mean(same) if same else None,
        "other_layer": other,
        "condition": statistics.median(head.condition for head in known),
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
    for seed, ids in enumerate(prompts(twin, size)):
        path = trajectories(twin, ids)
        layers = bar(f"Paths of prompt {seed}", size.layers)
        # By head; the first token sees itself only.
        energies = {layer: (path.energy(layer) / path.heads.shape[1])[:, 1:].mean(1).tolist() for layer in layers}
        rows.append(_steps(path, seed) | {"energy": _away(energies)})
    return {"prompts": rows}


def _away(energies: dict[int, list[float]]) -> dict[str, float]:
    """The mean potential some points before or after a head's own layer, less that at its own."""
    means = {}
    for offset in (-8, -4, -2, -1, 1, 2, 4, 8):
        away = [row[layer + offset] - row[layer] for layer, row in energies.items() if 0 <= layer + offset < len(row)]
        if away:
            means[str(offset)] = statistics.mean(away)
    return means


def _steps(path: Trajectories, seed: int) -> dict[str, Any]:
    steps, lengths, turns = path.steps[:, 1:], path.lengths[:, 1:], path.turns[:, 1:]
    order = torch.randperm(steps.shape[1], generator=_seeded(seed))
    chance = torch.cosine_similarity(steps[:-1], steps[1:, order], dim=-1).acos().rad2deg()
    pushes = torch.cat([path.heads, path.neurons], 1)[..., 1:]
    ranked = pushes.sort(dim=1, descending=True).values.cumsum(1)
    by_layer = {
        "lengths": lengths,
        "turns": turns,
        "neurons": path.neurons[..., 1:].sum(1) / lengths,
        "half": ((ranked < lengths[:, None] / 2).sum(1) + 1).double(),
        "against": pushes.abs().sum(1) / lengths,
    }
    return {
        **{name: values.median(1).values.tolist() for name, values in by_layer.items()},
        "turn": float(turns.median()),
        "turn_of_others": float(chance.median()),
        "explained": path.explained.tolist(),
    }


@torch.no_grad()
def segments(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """Overlaps of what heads write by how far layers are apart, against random segments; neurons inside them."""
    table, seeds = overlaps(twin, size.layers), range(size.seeds)
    d_head, d_model = read_attention(twin, 0).W_O.shape[1:]
    draws = [random_segments(12, d_head, d_model, seed) for seed in seeds]
    random = [angles(spans[:6], spans[6:]) for spans in draws]
    spans = [basis(read_attention(twin, layer).W_O.float()) for layer in size.layers]
    lines = [twin.banks[layer].weights().W_O[0].float() for layer in size.layers]
    random_lines = [torch.randn(256, d_model, generator=_seeded(seed)) for seed in seeds]
    count, best = len(table.mean), table.mean.triu(1).flatten().topk(5)
    apart = {distance: pairs for distance in (0, 1, 2, 4, 8, 16, 24) if len(pairs := table.pairs(distance))}
    return {
        "chance": table.chance,
        "by_distance": {str(distance): _mean(pairs) for distance, pairs in apart.items()},
        "largest": _mean(table.largest[torch.ones(count, count).triu(1).bool()]),
        "random": [_mean(cosines.square()) for cosines in random],
        "random_largest": [_mean(cosines[..., 0]) for cosines in random],
        "pairs": [
            (table.label(pair // count), table.label(pair % count), value)
            for pair, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        "neurons": statistics.mean(map(_largest_share, spans, lines)),
        "neurons_chance": [statistics.mean(_largest_share(span, rows) for span in spans) for rows in random_lines],
    }


def _largest_share(spans: Tensor, lines: Tensor) -> float:
    """The largest share of a line's square in one of a layer's segments, on average over lines."""
    shares = torch.einsum("hed,nd->hne", spans, lines).square().sum(-1) / lines.square().sum(-1)
    return float(shares.amax(0).mean())


def carried(twin: TwinBridge, size: Size) -> dict[str, Any]:
    """What probes read off heads, beside majority, shuffled labels, random directions and a table of tokens."""
    ids = spread_windows(twin, context=size.context, count=size.windows)
    return {
        task.task: {
            "classes": len(task.classes),
            "layers": list(task.layers),
            "top": task.top(5),
            "best_by_fold": task.heads.flatten(1)[:, task.heads.mean(0).argmax()].tolist(),
            "mean_by_fold": task.heads.mean((1, 2)).tolist(),
            "by_layer": task.heads.mean((0, 2)).tolist(),
            "best_by_layer": task.heads.mean(0).amax(1).tolist(),
            "shuffled_by_seed": task.shuffled.mean((1, 2)).tolist(),
            "shuffled_best_by_seed": task.shuffled.amax((1, 2)).tolist(),
            "stream_by_seed": task.stream.mean(1).tolist(),
            "stream_by_layer": task.stream.mean(0).tolist(),
            "majority_by_fold": task.chance.tolist(),
            "table_by_fold": task.table.tolist(),
        }
        for task in probes(twin, ids, seeds=size.seeds, layers=size.layers)
    }


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
