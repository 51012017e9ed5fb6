"""Random questions to random twins: answers add up to the live logit, and changes do what they predict.

    python -m tests.adversary.attributions --count 500 --seed 0

goes through every family that converts, in float64, and prints questions, refusals and wrong answers by family.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

import allheads as ah
from allheads.models.observe import run_bridge
from allheads_labs import zoo
from allheads_labs.zoo.families import NOT_IN_FLOAT64
from allheads_labs.zoo.inputs import WORDS

#: The end of these is curved: an activation in the head, or a cap of the logits.
CURVED = {
    *("BertForMaskedLM", "BertLMHeadModel", "ModernBertDecoderForCausalLM", "RobertaForMaskedLM"),
    *("Gemma2ForCausalLM", "MuseGlimmerForConditionalGeneration", "NanoChatForCausalLM", "RecurrentGemmaForCausalLM"),
    *("T5GemmaForConditionalGeneration", "VaultGemmaForCausalLM"),
}


def question(name: str, seed: int) -> tuple[ah.TwinBridge, dict[str, Any], random.Random]:
    """A random twin of a family, and an input for it: text of any length, or what it sees and hears."""
    dtype = torch.float32 if name in NOT_IN_FLOAT64 else torch.float64
    sample, drawn = zoo.build(name, seed=seed, dtype=dtype), random.Random(f"{name}{seed}")
    inputs, draw = dict(sample.inputs), torch.Generator().manual_seed(seed)
    if inputs.keys() <= {"input", "decoder_input"} and not inputs["input"].is_floating_point():
        inputs = {key: torch.randint(*WORDS, (1, drawn.randint(2, 12)), generator=draw) for key in inputs}
    return ah.convert(sample.bridge), inputs, drawn


def faults(name: str, seed: int) -> Iterator[str]:
    """Ask one random question of a random model of a family, and say what is wrong with the answer.

    Raises `AllHeadsError` for a family that is not converted, or not read.
    """
    twin, inputs, drawn = question(name, seed)

    def outputs() -> torch.Tensor:
        with torch.no_grad():
            return run_bridge(twin, inputs)[0]

    whole = outputs()
    weights = torch.randn(whole.shape[-1], generator=torch.Generator().manual_seed(seed)).to(whole)
    at, rule = drawn.randrange(len(whole)) if whole.ndim == 2 else -1, drawn.choice(["half", "value", "gate"])

    def target() -> float:
        found = outputs()
        return float((found if found.ndim == 1 else found[at]) @ weights)

    live, found = target(), ah.attribute(twin, inputs, weights, position=at, rule=rule)
    exact = 1.0 if whole.dtype == torch.float64 else 1e7
    size = sum(float(begin.abs().sum()) for begin in found.begins.values())
    close = 1e-11 * exact * max(1.0, abs(live), size)
    if not abs(found.target_value - live) < close:
        yield f"{rule}: it explains {found.target_value}, the model says {live}"
    if not abs(found.total - live) < close or not found.completeness_error < 1e-12 * exact:
        yield f"{rule}: the answer adds up to {found.total}, the model says {live}"
    if (abs(found.intercept) > close) != (name in CURVED):
        yield f"{rule}: an intercept of {found.intercept}"
    for incomplete in ("live", "gradient", "relp"):
        with suppress(*([] if incomplete == "gradient" else [ah.AllHeadsError])):  # gated norms of mixers
            value = ah.attribute(twin, inputs, weights, position=at, rule=incomplete).target_value
            if not abs(value - live) < close:
                yield f"{incomplete}: it explains {value}, the model says {live}"
    with ah.frozen(twin, inputs, rule=rule):
        if not abs(target() - live) < close:
            yield f"{rule}: the frozen network says {target()}, the live one {live}"
        for kind in "AXN":
            names = [sublayer for sublayer in found.effects if sublayer.endswith(f".{kind}")]
            if not names or name in CURVED:
                continue
            sublayer = drawn.choice(names)
            table = found.effects[sublayer].T if kind == "N" else found.effects[sublayer]
            label = f"{sublayer}{drawn.randrange(len(table))}"
            predicted = sum(part.effect for part in found.of(label))
            with ah.ablate(twin, [label]):
                lost = live - target()
            if not abs(lost - predicted) < 10 * close:
                yield f"{rule}: without {label} {lost} is lost, predicted {predicted}"
    if not torch.equal(outputs(), outputs()) or not abs(target() - live) <= close:
        yield "something stays frozen"


def main() -> int:
    """Ask as many questions as the arguments say; 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    families, unread = list(zoo.names()), Counter[str]()
    asked: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    number = 0
    while sum(asked.values()) - sum(unread.values()) < chosen.count:
        name = families[number % len(families)]
        number += 1
        asked[name] += 1
        try:
            found = list(faults(name, chosen.seed * 10_000 + number))
        except ah.AllHeadsError as refusal:
            unread[name] += 1
            found = []
            if asked[name] == 1:
                print(f"{name} is refused: {refusal}", file=sys.stderr, flush=True)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        wrong[name] += bool(found)
        for fault in found:
            print(f"{name}, number {number}: {fault}", file=sys.stderr, flush=True)
    print("| family | questions | refused | wrong answers |\n| --- | --- | --- | --- |")
    for name in asked:
        print(f"| {name} | {asked[name]} | {unread[name]} | {wrong[name]} |")
    print(f"| all | {sum(asked.values())} | {sum(unread.values())} | {sum(wrong.values())} |")
    return int(bool(sum(wrong.values())))


if __name__ == "__main__":
    sys.exit(main())
