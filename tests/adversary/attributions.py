"""Random questions to random twins: answers add up to the live logit, and changes do what they predict.

    python -m tests.adversary.attributions --count 500 --seed 0

goes through every family that attribution reads, in float64, and prints attempts, refusals and faults by family.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator

import torch

import allheads as ah
from allheads_labs import zoo

#: The end of these is curved: an activation in the head, or a cap of the logits.
CURVED = ["BertForMaskedLM", "Gemma2ForCausalLM", "ModernBertDecoderForCausalLM", "NanoChatForCausalLM"]
LINEAR = [
    "ArceeForCausalLM",
    "BloomForCausalLM",
    "CodeGenForCausalLM",
    "Cohere2ForCausalLM",
    "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma4UnifiedForConditionalGeneration",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "GraniteForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "Jais2ForCausalLM",
    "LlamaForCausalLM",
    "MinGPTForCausalLM",
    "MptForCausalLM",
    "NemotronForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
    "TransformerLensNative",
]


def faults(name: str, seed: int) -> Iterator[str]:
    """Ask one random question of a random model of a family, and say what is wrong with the answer."""
    twin = ah.convert(zoo.build(name, seed=seed, dtype=torch.float64).bridge)
    drawn, draw = random.Random(f"{name}{seed}"), torch.Generator().manual_seed(seed)
    length = drawn.randint(2, 12)
    ids = torch.randint(3, 64, (1, length), generator=draw)
    weights = torch.randn(twin.cfg.d_vocab_out, generator=draw, dtype=torch.float64)
    at, rule = drawn.randrange(length), drawn.choice(["half", "value", "gate"])

    def target() -> float:
        with torch.no_grad():
            return float(twin(ids)[0, at] @ weights)

    live, found = target(), ah.attribute(twin, ids, weights, position=at, rule=rule)
    close = 1e-11 * max(1.0, abs(live), float(found.embeddings.abs().sum()))
    if not abs(found.target_value - live) < close:
        yield f"{rule}: it explains {found.target_value}, the model says {live}"
    if not abs(found.total - live) < close or not found.completeness_error < 1e-12:
        yield f"{rule}: the answer adds up to {found.total}, the model says {live}"
    if (found.intercept != 0.0) != (name in CURVED):
        yield f"{rule}: an intercept of {found.intercept}"
    for incomplete in ("live", "gradient", "relp"):
        value = ah.attribute(twin, ids, weights, position=at, rule=incomplete).target_value
        if not abs(value - live) < close:
            yield f"{incomplete}: it explains {value}, the model says {live}"
    with ah.frozen(twin, ids, rule=rule):
        if not abs(target() - live) < close:
            yield f"{rule}: the frozen network says {target()}, the live one {live}"
        for table, point in ((found.heads, "attn.hook_z"), (found.neurons.transpose(1, 2), "mlp.hook_post")):
            layer, index = (drawn.randrange(size) for size in table.shape[:2])

            def turn_around(value, hook, index=index):
                return value.index_copy(2, torch.tensor([index]), -2.0 * value[:, :, index : index + 1])

            with twin.hooks(fwd_hooks=[(f"blocks.{layer}.{point}", turn_around)]):
                moved = target() - live
            predicted = -3.0 * float(table[layer, index].sum())
            if name not in CURVED and not abs(moved - predicted) < 10 * close:
                yield f"{rule}: blocks.{layer}.{point} {index} moves {moved}, predicted {predicted}"
    if not torch.equal(twin(ids), twin(ids)) or not abs(target() - live) <= close:
        yield "something stays frozen"


def main() -> int:
    """Ask as many questions as the arguments say; 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    families = sorted(LINEAR + CURVED)
    asked: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for number in range(chosen.count):
        name = families[number % len(families)]
        asked[name] += 1
        try:
            found = list(faults(name, chosen.seed * 10_000 + number))
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        wrong[name] += bool(found)
        for fault in found:
            print(f"{name}, number {number}: {fault}", file=sys.stderr)
    print("| family | questions | wrong answers |\n| --- | --- | --- |")
    for name in asked:
        print(f"| {name} | {asked[name]} | {wrong[name]} |")
    print(f"| all | {sum(asked.values())} | {sum(wrong.values())} |")
    return int(bool(sum(wrong.values())))


if __name__ == "__main__":
    sys.exit(main())
