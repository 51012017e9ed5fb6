"""What ``allheads lab physics`` has measured, as tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from allheads_labs.kit.markdown import markdown


def ranged(values: Sequence[float], form: str = ".3f") -> str:
    """The mean and the range over seeds, prompts or folds.

    >>> ranged([0.1, 0.2, 0.3], ".1f")
    '0.2 (0.1 to 0.3)'
    """
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def tables(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By marker; parts that were not measured are left out."""
    return {f"physics:{name}": _TABLES[name](found) for name, found in parts.items()}


def _gradients(found: Mapping[str, Any]) -> str:
    heads, neurons = found["count"]
    rows = [
        ["random heads, float64, by seed", "absolute", f"{max(found['random']):.1e}", ""],
        [f"{heads} ordinary heads", "relative", f"{found['heads'][0]:.1e}", f"{found['heads'][1]:.1e}"],
        [f"{neurons} neuron heads", "relative", f"{found['neurons'][0]:.1e}", "none: no key of their own"],
    ]
    table = markdown(["closed form against autograd", "error", "keys held", "own key"], rows)
    return f"{table}\n\nThe term of the own key is {found['own']:.2f} times as long as the other (median over heads)."


def _memory(found: Mapping[str, Any]) -> str:
    n_heads = len(found["shares"][0])
    rows = [
        [f"L{layer}", *(f"{each:.2f}" for each in shares), f"{statistics.mean(shares):.3f}"]
        for layer, shares in zip(found["layers"], found["shares"], strict=True)
    ]
    every = [each for shares in found["shares"] for each in shares]
    highest = max(each for seed in found["random"] for each in seed)
    means = [statistics.mean(seed) for seed in found["random"]]
    summary = [
        ["all heads", f"{statistics.mean(every):.3f} ({min(every):.3f} to {max(every):.3f}, over heads)"],
        ["random heads, by seed", ranged(means)],
        ["expected of random heads, d_head / d_model", f"{found['expected']:.3f}"],
        ["OV with the keys of another layer, by seed", ranged(found["other_layer"])],
        ["heads above every random one", f"{sum(each > highest for each in every)} of {len(every)}"],
        ["condition of W_K W_Q^T, median", f"{found['condition']:.0f}"],
    ]
    if found["same_layer"] is not None:
        summary.insert(3, ["OV with other keys of the same layer", f"{found['same_layer']:.3f}"])
    by_head = markdown(["share of OV", *(f"A{i}" for i in range(n_heads)), "mean"], rows)
    return f"{markdown(['share of OV that M explains', ''], summary)}\n\n{by_head}"


def _motion(found: Mapping[str, Any]) -> str:
    def flat(name: str) -> list[float]:
        return [each for layer in found[name] for each in layer]

    rows = [
        ["cosine of write and gradient, mean, by prompt", ranged(found["cosine_by_prompt"])],
        ["the same with the term of the own key", ranged(found["whole_by_prompt"])],
        ["the same with the gradient at another token, by seed", ranged(found["other_by_seed"])],
        ["its size, mean over heads, by prompt", ranged(found["size_by_prompt"])],
        ["the same with the gradient at another token, by seed", ranged(found["other_size_by_seed"])],
        ["variance of the write explained by M, median over heads", f"{statistics.median(flat('memory')):.2f}"],
        ["by the best linear map from the gradient, mean", f"{statistics.mean(flat('gradient')):.3f}"],
        ["by the best one from random directions, mean, by seed", ranged(found["chance_by_seed"])],
        ["heads whose gradient beats every random draw", f"{100 * found['ahead']:.0f} %"],
    ]
    layers = [
        [f"L{layer}", *(f"{statistics.mean(found[name][i]):.3f}" for name in ("cosine", "gradient", "chance"))]
        for i, layer in enumerate(found["layers"])
    ]
    by_layer = markdown(["layer", "cosine", "explained by the gradient", "by random directions"], layers)
    return f"{markdown(['motion along the gradient', ''], rows)}\n\n{by_layer}"


def _paths(found: Mapping[str, Any]) -> str:
    prompts = found["prompts"]
    head = ["layer", "length of the step", "turn to the next", "share of neurons", "parts for half", "pushes / step"]
    rows = []
    for layer in range(len(prompts[0]["lengths"])):
        columns = [
            ranged([each[name][layer] for each in prompts], form) if layer < len(prompts[0][name]) else ""
            for name, form in (
                ("lengths", ".0f"),
                ("turns", ".0f"),
                ("neurons", ".2f"),
                ("half", ".0f"),
                ("against", ".2f"),
            )
        ]
        rows.append([f"L{layer}", *columns])
    away = markdown(
        ["points after the head's own layer", "U less that at its own layer, nats a head"],
        [[f"{int(at):+d}", ranged([each["energy"][at] for each in prompts], "+.2f")] for at in prompts[0]["energy"]],
    )
    turn, others = ([each[name] for each in prompts] for name in ("turn", "turn_of_others"))
    said = f"Turns: median {ranged(turn, '.0f')} degrees; to the next step of another token {ranged(others, '.0f')}."
    return f"{markdown(head, rows)}\n\n{said}\n\n{away}"


def _segments(found: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{a} and {b} {value:.2f}" for a, b, value in found["pairs"])
    rows = [[f"{apart} layers apart", f"{value:.3f}"] for apart, value in found["by_distance"].items()]
    rows += [
        ["random segments, by seed", ranged(found["random"])],
        ["expected at random, d_head / d_model", f"{found['chance']:.3f}"],
        ["largest cosine of a pair, mean", f"{found['largest']:.3f}"],
        ["the same, random segments, by seed", ranged(found["random_largest"])],
        ["a neuron's write in the segment of its layer that has most of it, mean", f"{found['neurons']:.3f}"],
        ["the same, random lines, by seed", ranged(found["neurons_chance"])],
        ["most alike", pairs],
    ]
    return markdown(["mean squared cosine of principal angles", ""], rows)


def _probes(found: Mapping[str, Any]) -> str:
    head = [
        "",
        "best head, by fold",
        "all heads, by fold",
        "shuffled labels",
        "majority",
        "random directions",
        "table",
        "top",
    ]
    rows = [
        [
            name,
            ranged(each["best_by_fold"]),
            ranged(each["mean_by_fold"]),
            f"{ranged(each['shuffled_by_seed'])}, best {max(each['shuffled_best_by_seed']):.3f}",
            ranged(each["majority_by_fold"]),
            ranged(each["stream_by_seed"]),
            ranged(each["table_by_fold"]),
            ", ".join(f"{label} {value:.2f}" for label, value in each["top"]),
        ]
        for name, each in found.items()
    ]
    layers = next(iter(found.values()))["layers"]
    columns = [
        [f"L{layer}", *(f"{each['by_layer'][i]:.2f}, {each['best_by_layer'][i]:.2f}" for each in found.values())]
        for i, layer in enumerate(layers)
    ]
    return f"{markdown(head, rows)}\n\n{markdown(['mean, best of the layer', *found], columns)}"


_TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "gradients": _gradients,
    "memory": _memory,
    "motion": _motion,
    "paths": _paths,
    "segments": _segments,
    "probes": _probes,
}
