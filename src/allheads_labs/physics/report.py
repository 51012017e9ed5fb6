"""What ``allheads lab physics`` has measured, as tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from allheads_labs.kit.table import markdown

#: What one part of the measurements has found, as JSON.
Part = Mapping[str, Any]


def ranged(values: Sequence[float], form: str = ".3f") -> str:
    """The mean and the range over seeds, prompts or folds.

    >>> ranged([0.1, 0.2, 0.3], ".1f")
    '0.2 (0.1 to 0.3)'
    """
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def tables(parts: Mapping[str, Part]) -> dict[str, str]:
    """By marker; parts that were not measured are left out."""
    return {f"physics:{name}": _TABLES[name](part) for name, part in parts.items()}


def _flat(rows: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in rows for value in row]


def _gradients(part: Part) -> str:
    heads, neurons = part["count"]
    rows = [
        ["random heads, float64, by seed", "absolute", f"{max(part['random']):.1e}", ""],
        [f"{heads} ordinary heads", "relative", *(f"{error:.1e}" for error in part["heads"])],
        [f"{neurons} neuron heads", "relative", f"{part['neurons'][0]:.1e}", "none: no key of their own"],
    ]
    table = markdown(["closed form against autograd", "error", "keys held", "own key"], rows)
    return f"{table}\n\nThe term of the own key is {part['own']:.2f} times as long as the other (median over heads)."


def _memory(part: Part) -> str:
    shares, highest, same = _flat(part["shares"]), max(_flat(part["random"])), part["same_layer"]
    rows = [
        ["all heads", f"{ranged(shares)[:-1]}, over heads)"],
        ["random heads, by seed", ranged([statistics.mean(seed) for seed in part["random"]])],
        ["expected of random heads, d_head / d_model", f"{part['expected']:.3f}"],
        *([["OV with other keys of the same layer", f"{same:.3f}"]] if same is not None else []),
        ["OV with the keys of another layer, by seed", ranged(part["other_layer"])],
        ["heads above every random one", f"{sum(share > highest for share in shares)} of {len(shares)}"],
        ["condition of W_K W_Q^T, median", f"{part['condition']:.0f}"],
    ]
    layers = [
        [f"L{layer}", *(f"{share:.2f}" for share in heads), f"{statistics.mean(heads):.3f}"]
        for layer, heads in zip(part["layers"], part["shares"], strict=True)
    ]
    by_head = markdown(["share of OV", *(f"A{head}" for head in range(len(part["shares"][0]))), "mean"], layers)
    return f"{markdown(['share of OV that M explains', ''], rows)}\n\n{by_head}"


def _motion(part: Part) -> str:
    rows = [
        ["cosine of write and gradient, mean, by prompt", ranged(part["cosine_by_prompt"])],
        ["the same with the term of the own key", ranged(part["whole_by_prompt"])],
        ["the same with the gradient at another token, by seed", ranged(part["other_by_seed"])],
        ["its size, mean over heads, by prompt", ranged(part["size_by_prompt"])],
        ["the same with the gradient at another token, by seed", ranged(part["other_size_by_seed"])],
        ["variance of the write explained by M, median over heads", f"{statistics.median(_flat(part['memory'])):.2f}"],
        ["by the best linear map from the gradient, mean", f"{statistics.mean(_flat(part['gradient'])):.3f}"],
        ["by the best one from random directions, mean, by seed", ranged(part["chance_by_seed"])],
        ["heads whose gradient beats every random draw", f"{100 * part['ahead']:.0f} %"],
    ]
    layers = [
        [f"L{layer}", *(f"{statistics.mean(part[name][at]):.3f}" for name in ("cosine", "gradient", "chance"))]
        for at, layer in enumerate(part["layers"])
    ]
    by_layer = markdown(["layer", "cosine", "explained by the gradient", "by random directions"], layers)
    return f"{markdown(['motion along the gradient', ''], rows)}\n\n{by_layer}"


#: Columns of the table of paths: heading, name, format.
_STEPS = (
    ("length of the step", "lengths", ".0f"),
    ("turn to the next", "turns", ".0f"),
    ("share of neurons", "neurons", ".2f"),
    ("parts for half", "half", ".0f"),
    ("pushes / step", "against", ".2f"),
)


def _paths(part: Part) -> str:
    prompts = part["prompts"]
    rows = [
        [
            f"L{layer}",
            *(
                ranged([prompt[name][layer] for prompt in prompts], form) if layer < len(prompts[0][name]) else ""
                for _, name, form in _STEPS
            ),
        ]
        for layer in range(len(prompts[0]["lengths"]))
    ]
    away = [
        [f"{int(at):+d}", ranged([prompt["energy"][at] for prompt in prompts], "+.2f")] for at in prompts[0]["energy"]
    ]
    turn, others = (ranged([prompt[name] for prompt in prompts], ".0f") for name in ("turn", "turn_of_others"))
    return "\n\n".join(
        [
            markdown(["layer", *(heading for heading, _, _ in _STEPS)], rows),
            f"Turns: median {turn} degrees; to the next step of another token {others}.",
            markdown(["points after the head's own layer", "U less that at its own layer, nats a head"], away),
        ]
    )


def _segments(part: Part) -> str:
    rows = [[f"{apart} layers apart", f"{value:.3f}"] for apart, value in part["by_distance"].items()]
    rows += [
        ["random segments, by seed", ranged(part["random"])],
        ["expected at random, d_head / d_model", f"{part['chance']:.3f}"],
        ["largest cosine of a pair, mean", f"{part['largest']:.3f}"],
        ["the same, random segments, by seed", ranged(part["random_largest"])],
        ["a neuron's write in the segment of its layer that has most of it, mean", f"{part['neurons']:.3f}"],
        ["the same, random lines, by seed", ranged(part["neurons_chance"])],
        ["most alike", ", ".join(f"{a} and {b} {value:.2f}" for a, b, value in part["pairs"])],
    ]
    return markdown(["mean squared cosine of principal angles", ""], rows)


#: Columns of the table of probes: heading, and what it says of a task.
_PROBES: dict[str, Callable[[Part], str]] = {
    "best head, by fold": lambda task: ranged(task["best_by_fold"]),
    "all heads, by fold": lambda task: ranged(task["mean_by_fold"]),
    "shuffled labels": lambda task: (
        f"{ranged(task['shuffled_by_seed'])}, best {max(task['shuffled_best_by_seed']):.3f}"
    ),
    "majority": lambda task: ranged(task["majority_by_fold"]),
    "random directions": lambda task: ranged(task["stream_by_seed"]),
    "table": lambda task: ranged(task["table_by_fold"]),
    "top": lambda task: ", ".join(f"{label} {value:.2f}" for label, value in task["top"]),
}


def _probes(part: Part) -> str:
    rows = [[name, *(column(task) for column in _PROBES.values())] for name, task in part.items()]
    layers = [
        [f"L{layer}", *(f"{task['by_layer'][at]:.2f}, {task['best_by_layer'][at]:.2f}" for task in part.values())]
        for at, layer in enumerate(next(iter(part.values()))["layers"])
    ]
    return f"{markdown(['', *_PROBES], rows)}\n\n{markdown(['mean, best of the layer', *part], layers)}"


_TABLES: dict[str, Callable[[Part], str]] = {
    "gradients": _gradients,
    "memory": _memory,
    "motion": _motion,
    "paths": _paths,
    "segments": _segments,
    "probes": _probes,
}
