"""The content of one feature file: what a sweep has counted of a neuron."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from allheads.corpus.activation_bins import even_bins, quantiles
from allheads.corpus.sweep_result import Example, Sweep
from allheads.twin.labels import Label

#: Bins of a histogram; percentiles.
BINS, SHARES = 50, np.linspace(0.0, 1.0, 101)
#: Digits of an activation.
_DIGITS = 5
#: Names of groups of examples; pages and scripts look for the first.
_POSITIVE, _NEGATIVE = "Top activations", "Most negative activations"


def feature(sweep: Sweep, label: Label, row: int, text: Callable[[int], str]) -> dict[str, Any]:
    """All but its number and the logits.

    ``act_min`` and ``act_max`` are the lowest and highest activation at any position, ``histogram`` counts positions in
    bins of one width between them, ``quantile_values`` are percentiles, ``activation_frequency`` is how often the
    neuron is open.
    """
    statistics = sweep.statistics
    lowest, highest = float(statistics.lowest[row]), float(statistics.highest[row])
    counts = statistics.histogram[row].numpy()
    return {
        "transcoder_id": sweep.settings["model"],
        "label": str(label),
        "examples_quantiles": _groups(sweep.examples(row), text),
        "act_min": _short(lowest),
        "act_max": _short(highest),
        "quantile_values": [_short(value) for value in quantiles(counts, lowest, highest, SHARES).tolist()],
        "histogram": [round(value, 2) for value in even_bins(counts, lowest, highest, BINS).tolist()],
        "activation_frequency": _short(int(statistics.open[row]) / statistics.positions),
    }


def _groups(examples: list[Example], text: Callable[[int], str]) -> list[dict[str, Any]]:
    """Examples by their sign, that of the largest first: pages scale their colours by the first group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example, shown in zip(examples, _shown(examples, text), strict=True):
        groups.setdefault(_POSITIVE if example.value >= 0 else _NEGATIVE, []).append(shown)
    return [{"quantile_name": name, "examples": group} for name, group in (groups or {_POSITIVE: []}).items()]


def _shown(examples: list[Example], text: Callable[[int], str]) -> Iterator[dict[str, Any]]:
    """Examples as pages have them; the same tokens again are a repetition."""
    seen = set()
    for example in examples:
        tokens = tuple(example.tokens)
        yield {
            "tokens": [text(token) for token in tokens],
            "tokens_acts_list": [_short(value) for value in example.activations],
            "train_token_ind": example.at,
            "is_repeated_datapoint": tokens in seen,
        }
        seen.add(tokens)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
