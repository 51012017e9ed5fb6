"""An encoder-decoder on a language whose alignment is known: ``allheads lab translation``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from allheads import convert
from allheads_labs.kit.lab import Lab, Unit
from allheads_labs.kit.small_models import as_bridge
from allheads_labs.translation.alignment import diagonal, links, score
from allheads_labs.translation.language import SentencePair, TranslationBatch, batch, corpus
from allheads_labs.translation.report import claims, tables
from allheads_labs.translation.training import TranslationSetting, exact, logits_of, train, translate

#: (layers on each side, heads of every attention, sentences, steps, seconds); the first is what the claims are about.
FULL = ((2, 1, 8000, 500, 35.0), (1, 1, 8000, 500, 20.0), (2, 4, 8000, 500, 35.0))
QUICK = ((2, 1, 4000, 300, 20.0),)
HELD_OUT = 1000
#: How hook points of the three kinds of attention are called.
KINDS = {
    "encoder_blocks.{}.attn": "encoder",
    "decoder_blocks.{}.self_attn": "decoder",
    "decoder_blocks.{}.cross_attn": "cross",
}


def units(quick: bool, seeds: int) -> list[Unit]:
    """One seed after the other."""
    return [
        Unit({"layers": layers, "heads": heads, "sentences": sentences, "steps": steps, "quick": quick}, seed, seconds)
        for seed in range(seeds)
        for layers, heads, sentences, steps, seconds in (QUICK if quick else FULL)
    ]


def run(unit: Unit) -> dict[str, Any]:
    """Train, translate what was held out, read off the links, and do the same with the twin."""
    setting = unit.setting
    recipe = TranslationSetting(setting["layers"], setting["heads"], setting["sentences"], setting["steps"])
    pairs, held_out = corpus(unit.seed, recipe.sentences, HELD_OUT // (4 if setting["quick"] else 1))
    started = time.perf_counter()
    source = as_bridge(train(recipe, pairs, unit.seed), "toy translation")
    seconds = time.perf_counter() - started
    twin, test = convert(source), batch(held_out)
    of_model = patterns(source, test)
    with twin.evaluated("slots"):
        of_twin = patterns(twin, test)
        twin_exact = exact(translate(logits_of(twin), test), test.write)
    return {
        "training_seconds": seconds,
        "exact": exact(translate(logits_of(source), test), test.write),
        "alignment": aligned(of_model, held_out, recipe.layers),
        "twin": {
            "exact": twin_exact,
            "pattern_gaps": {kind: _gap(of_model, of_twin, kind) for kind in KINDS.values()},
            "alignment": aligned(of_twin, held_out, recipe.layers)["last layer"],
        },
        "example": _example(of_model, of_twin, held_out),
    }


def patterns(model: TransformerBridge, given: TranslationBatch) -> dict[str, Tensor]:
    """All patterns ``[batch head to from]`` by kind and layer, ``"cross 1"``; columns of padding are zero."""
    names = {
        f"{stem.format(layer)}.hook_pattern": f"{kind} {layer}"
        for stem, kind in KINDS.items()
        for layer in range(model.cfg.n_layers)
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, cache = model.run_with_cache(
            given.source, decoder_input=given.read, attention_mask=given.mask, names_filter=list(names)
        )
    return {short: cache[name] for name, short in names.items()}


def aligned(attention: dict[str, Tensor], pairs: Sequence[SentencePair], layers: int) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of the links of cross-attention, heads averaged: of each layer, and of their mean."""
    by_layer = [attention[f"cross {layer}"].mean(1) for layer in range(layers)]
    weights = {f"layer {layer}": mean for layer, mean in enumerate(by_layer[:-1])} | {"last layer": by_layer[-1]}
    if layers > 1:
        weights["layers averaged"] = torch.stack(by_layer).mean(0)
    read = {"diagonal": [diagonal(pair) for pair in pairs]}
    read |= {name: [links(mean[row], pair) for row, pair in enumerate(pairs)] for name, mean in weights.items()}
    return {name: score(sentences, [pair.links for pair in pairs]) for name, sentences in read.items()}


def _gap(of_model: dict[str, Tensor], of_twin: dict[str, Tensor], kind: str) -> float:
    return max(float((of_model[name] - of_twin[name]).abs().max()) for name in of_model if name.startswith(kind))


def _example(of_model: dict[str, Tensor], of_twin: dict[str, Tensor], pairs: Sequence[SentencePair]) -> dict[str, Any]:
    """One sentence with all that was planted, if there is one, and its patterns, of the model and of the twin."""
    row = max(range(len(pairs)), key=lambda at: (_planted(pairs[at]), -len(pairs[at].source)))
    pair = pairs[row]
    sizes = {"from": len(pair.source) + 1, "to": len(pair.target) + 1}

    def cut(pattern: Tensor, kind: str) -> list[Any]:
        rows, columns = sizes["from" if kind == "encoder" else "to"], sizes["to" if kind == "decoder" else "from"]
        return [[[round(w, 4) for w in line] for line in head] for head in pattern[row, :, :rows, :columns].tolist()]

    return {
        "source": [*pair.source, "</s>"],
        "target": [*pair.target, "</s>"],
        "links": sorted(pair.links),
        "model": {name: cut(pattern, name.split()[0]) for name, pattern in of_model.items()},
        "twin": {name: cut(pattern, name.split()[0]) for name, pattern in of_twin.items()},
    }


def _planted(pair: SentencePair) -> int:
    """How many of dropped words, adverb, plural, particle and adjective a pair has."""
    words = " ".join((*pair.source, *pair.target))
    return sum(mark in words for mark in ("the", "adv", "PL", "up", "adj"))


LAB = Lab("translation", 2, units, run, tables, claims)
