"""The contents of HeadVis' files."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from allheads.formats.attention_samples import INTERVALS, KEYS, LEAST, SAMPLES, TOP_SAMPLES
from allheads.formats.attention_scores import INDUCTION, Measure
from allheads.formats.attention_units import Units

#: Bins of the largest attention of a window, limits between distances, and tokens that are listed.
BINS, DISTANCES, TOKENS = 50, [0, *(2**power for power in range(13))], 50


@dataclass(frozen=True)
class Sample:
    """One window of one head or neuron; the window's number, its tokens, and what is attended to."""

    interval: int
    window: int
    tokens: list[str]
    places: np.ndarray
    values: np.ndarray
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """As HeadVis has it."""
        return {
            "sequence_id": self.window,
            "interval": self.interval,
            "tokens": self.tokens,
            "attention_indices": self.places.tolist(),
            "attention_values": self.values.tolist(),
            "seq_len": len(self.tokens),
            "max_activation": _rounded(self.largest),
        }


def head_file(samples: list[Sample], largest: np.ndarray) -> dict[str, Any]:
    """The file of one head: its samples, what they look at, and the largest attention in every window."""
    bins = np.clip((largest * BINS).astype(np.int64), 0, BINS - 1)
    return {
        "sequences": [sample.to_dict() for sample in samples],
        "qk_distance_histogram": {"bin_edges": DISTANCES, "bin_values": _distances(samples)},
        "top_query_tokens": _tokens(samples, 0),
        "top_key_tokens": _tokens(samples, 1),
        "histogram": {
            "bin_edges": [round(edge, 4) for edge in np.linspace(0.0, 1.0, BINS + 1).tolist()],
            "bin_values": np.bincount(bins, minlength=BINS).tolist(),
        },
        "statistics": {"n_samples": len(samples), "mean_max_activation": _rounded(float(largest.mean(dtype=float)))},
    }


def _pairs(sample: Sample) -> list[tuple[tuple[int, int], float]]:
    """Query and key of what is kept, with its attention."""
    pairs = (divmod(place, len(sample.tokens)) for place in sample.places.tolist())
    return list(zip(pairs, sample.values.tolist(), strict=True))


def _distances(samples: list[Sample]) -> list[float]:
    sums = [0.0] * (len(DISTANCES) - 1)
    for sample in samples:
        for (query, key), value in _pairs(sample):
            at = bisect_right(DISTANCES, abs(query - key)) - 1
            if at < len(sums):
                sums[at] += value
    return [round(value, 4) for value in sums]


def _tokens(samples: list[Sample], side: int) -> list[dict[str, Any]]:
    """Tokens with the most attention, as queries (0) or as keys (1)."""
    sums: dict[str, float] = defaultdict(float)
    for sample in samples:
        for pair, value in _pairs(sample):
            sums[sample.tokens[pair[side]]] += value
    ranked = sorted(sums.items(), key=lambda item: -item[1])[:TOKENS]
    return [{"token": token, "weight": round(weight, 4)} for token, weight in ranked]


def scatter_rows(units: Units, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each head or neuron; what cannot be measured is None."""
    columns = {name: [_rounded(value) for value in values.tolist()] for name, values in metrics.items()}
    return [
        {"layer": label.layer, "head": label.index} | {name: column[row] for name, column in columns.items()}
        for row, label in enumerate(units.labels)
    ]


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def config_file(units: Units, measure: Measure, dataset: str, run: dict[str, Any]) -> dict[str, Any]:
    """``config.json``, which the page reads first; ``run`` is what the corpus was cut into."""
    cfg, neurons = units.countable.twin.cfg, units.neurons
    heads = sorted([label.layer, label.index] for label in units.labels)
    per_layer = max(site.count for site in (units.countable.neurons if neurons else units.countable.heads))
    plots = {"histogram": "Largest openness" if neurons else "Largest attention"}
    tables = {"top_query_tokens": "Tokens where it is open" if neurons else "Queries with the most attention"}
    if not neurons:
        plots = {"qk_distance_histogram": "Distance from query to key"} | plots
        tables |= {"top_key_tokens": "Keys with the most attention"}
    return {
        "model_name": str(cfg.model_name),
        "dataset_name": dataset,
        "heads": heads,
        "n_layers": cfg.n_layers,
        "n_heads": per_layer,
        "n_intervals": INTERVALS,
        "metrics": list(measure.descriptions),
        "metric_descriptions": dict(measure.descriptions),
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [{"key": key, "label": label} for key, label in plots.items()],
        "custom_tables": [{"key": key, "label": label} for key, label in tables.items()],
        "statistics_display": {
            "n_samples": {"label": "Windows shown", "format": "default"},
            "mean_max_activation": {"label": f"{plots['histogram']}, mean over windows", "format": "default"},
        },
        "pipeline_config": {
            "model_name": str(cfg.model_name),
            "dataset_name": dataset,
            **run,
            "dtype": str(cfg.dtype).removeprefix("torch."),
            "attn_implementation": "eager",
            "induction_attention_threshold": INDUCTION,
            "n_intervals": INTERVALS,
            "samples_per_interval": SAMPLES,
            "samples_per_top_interval": TOP_SAMPLES,
            "sparse_topk_per_row": KEYS,
            "sparse_threshold": LEAST,
            "num_hidden_layers": cfg.n_layers,
            "num_attention_heads": per_layer,
        },
    }
