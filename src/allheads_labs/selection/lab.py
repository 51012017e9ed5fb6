"""Choosing the important tokens: ``allheads lab selection``.

A unit is one learner in one setting, for all numbers of sequences at once. What is measured of attention: whether it
orders the tokens as their importance does, how much of it is on the three that count, and what is left without it.
"""

from __future__ import annotations

from typing import Any

import torch

from allheads_labs.kit.lab import Lab, Unit
from allheads_labs.kit.statistics import rank_correlation
from allheads_labs.kit.twins import side_by_side
from allheads_labs.selection.learners import KINDS, AttentionBlock
from allheads_labs.selection.report import claims, tables
from allheads_labs.selection.targets import LAGS, Sequences, sample
from allheads_labs.selection.training import error, train

SIZES, ONE_SIZE, QUICK_SIZES = (256, 512, 1024, 2048, 4096), (2048,), (512, 2048)
#: (target, tokens, their dimensions, numbers of sequences, steps, seconds of a transformer). The first of each target
#: is the one that others are compared with.
FULL = (
    ("relative", 11, 5, SIZES, 1500, 22.0),
    ("relative", 7, 5, ONE_SIZE, 1500, 9.0),
    ("relative", 35, 5, ONE_SIZE, 1500, 16.0),
    ("relative", 11, 20, ONE_SIZE, 1500, 10.0),
    ("mixed", 8, 4, SIZES, 1000, 14.0),
    ("mixed", 32, 4, ONE_SIZE, 1000, 10.0),
    ("mixed", 8, 16, ONE_SIZE, 1000, 6.0),
    ("anisotropic", 8, 4, SIZES, 1000, 14.0),
)
QUICK = (("relative", 11, 5, QUICK_SIZES, 300, 3.0), ("mixed", 8, 4, QUICK_SIZES, 300, 3.0))
#: Of the time of a transformer.
SHARES = {"transformer": 1.0, "uniform": 0.9, "convolution": 1.1, "connected": 0.3}
#: Sequences that everything is measured on, those of a twin, and their seed, which no training has.
TEST, TWIN, SEED = 4096, 64, 10**6


def units(quick: bool, seeds: int) -> list[Unit]:
    """All learners in all settings, one seed after the other."""
    return [
        Unit(
            {"target": kind, "length": length, "d_token": d, "sizes": list(sizes), "steps": steps, "learner": name},
            seed,
            seconds * SHARES[name],
        )
        for seed in range(seeds)
        for kind, length, d, sizes, steps, seconds in (QUICK if quick else FULL)
        for name in KINDS
    ]


def run(unit: Unit) -> dict[str, Any]:
    """Train one learner for each number of sequences; test them, and look at the attention of those that have any."""
    setting = unit.setting
    # Tests of all seeds ask about other sequences than training does, and about the same function.
    known, test = (
        sample(
            setting["target"],
            torch.Generator().manual_seed(start),
            (count, setting["length"], setting["d_token"]),
            seed=unit.seed,
        )
        for start, count in ((unit.seed, max(setting["sizes"])), (SEED, TEST))
    )
    sizes = setting["sizes"]
    made = train(setting["learner"], known, sizes, steps=setting["steps"], seed=unit.seed)
    findings: dict[str, Any] = {
        "parameters": sum(p.numel() for p in made[0].parameters()),
        "errors": {str(n): error(one, test) for n, one in zip(sizes, made, strict=True)},
    }
    attentive = [one for one in made if isinstance(one, AttentionBlock) and not one.frozen]
    if attentive:
        findings["attention"] = {str(n): attention(one, test) for n, one in zip(sizes, attentive, strict=True)}
        findings["twin"] = compared(attentive[-1], test)
    return findings


def attention(one: AttentionBlock, test: Sequences) -> dict[str, Any]:
    """Rank correlation of attention and importance within a sequence, heads averaged and each; the weight on three.

    For fixed lags importance is 1 for the tokens that count and 0 for others.
    """
    with torch.no_grad():
        pattern = one.with_pattern(test.tokens)[1][..., :-1]
    three = test.importance.topk(len(LAGS), dim=-1).indices
    every = test.importance[:, None].expand_as(pattern)
    one.frozen = True
    frozen = error(one, test)
    one.frozen = False
    return {
        "correlation": float(rank_correlation(pattern.mean(1), test.importance).mean()),
        "heads": rank_correlation(pattern, every).mean(0).tolist(),
        "weight": float(pattern.mean(1).gather(1, three).sum(1).mean()),
        "error when frozen": frozen,
    }


def compared(one: AttentionBlock, test: Sequences) -> dict[str, float]:
    """The learner beside its attention-only twin: errors, the largest difference of a number, and of a pattern."""
    tokens, target = test.tokens[:TWIN], test.target[:TWIN]
    both = side_by_side(*one.bridge(tokens))

    def missed(logits: torch.Tensor) -> float:
        return float((logits[:, 0] - target).square().mean() / test.target.var(correction=0))

    with torch.no_grad():
        computed = one(tokens)
    return {
        **both.compared("error", missed),
        "gap": float((both.source - both.twin)[:, 0].abs().max()),
        "shortcut_gap": float((both.source[:, 0] - computed).abs().max()),
    }


LAB = Lab("selection", 1, units, run, tables, claims)
