"""Threads that use one twin at the same time: every answer is right or an `AllHeadsError`, and nothing stays behind.

    python -m tests.adversary.threads --count 800 --seed 0

Each thread attributes, freezes, edits, ablates, caches, sweeps, changes the evaluation or just runs the twin, on texts
of several lengths, in a random order. *Right* is what the twin gives alone, as it is or with the one edit that is made.
Afterwards its logits are the same to the bit.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

import allheads as ah
from allheads_labs import zoo

#: Prompts of different lengths, and a family with norms on queries and keys.
FAMILY, THREADS = "Qwen3ForCausalLM", 4
TEXTS = [torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(length)) for length in (5, 5, 9, 12)]
Ask = Callable[[ah.TwinBridge, Tensor], list[Tensor]]


class _Undone(Exception):  # noqa: N818 - nothing went wrong
    """Leaves an edit, so that the heads are what they were."""


@torch.no_grad()
def run(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    return [twin(ids)]


def attribute(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    found = ah.attribute(twin, ids, (3, 5), rule="half")
    return [found.neurons, found.heads, found.embeddings, torch.tensor(found.target_value)]


def differentiate(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    found = ah.attribute(twin, ids, 7, rule="relp")
    return [found.neurons, found.heads]


def graph(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    found = ah.graph(twin, ids, 7, rule="value", budget=5)
    return [torch.tensor([edge.weight for edge in found.edges])]


@torch.no_grad()
def freeze(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    with ah.frozen(twin, ids):
        first = twin(ids)
        inside = ah.attribute(twin, ids, 7).neurons
        return [first, twin(ids), inside]


@torch.no_grad()
def ablate(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    with ah.ablate(twin, ["L0.A1", "L1.N7"]):
        return [twin(ids)]


@torch.no_grad()
def cache(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    logits, kept = twin.run_with_cache(ids, names_filter=lambda name: name.endswith(("hook_resid_post", "hook_pre")))
    return [logits, *kept.values()]


def draw(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    return [torch.tensor(ah.plots.gates(twin, ids).data[0].z)]


def average(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    return [ah.corpus.means(twin, ids).of("blocks.1.mlp.hook_post")]


def sweep(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    found = ah.corpus.sweep(twin, [ids[0]], ah.corpus.SweepSettings(context=12, batch=2, every=1))
    return [tensor for name, tensor in sorted(found.statistics.tensors().items()) if tensor.is_floating_point()]


@torch.no_grad()
def edit(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    logits = []
    try:
        with twin.banks[1].edit() as heads:
            heads.W_O[3] *= -40.0
            logits = [twin(ids)]
            raise _Undone
    except _Undone:
        return logits


@torch.no_grad()
def evaluate(twin: ah.TwinBridge, ids: Tensor) -> list[Tensor]:
    bank = twin.banks[0]
    bank.evaluation = "attention"
    try:
        return [twin(ids)]
    finally:
        bank.evaluation = "closed"


ASKS: dict[str, Ask] = {
    ask.__name__: ask
    for ask in (run, attribute, differentiate, graph, freeze, ablate, cache, draw, average, sweep, edit, evaluate)
}


@dataclass
class Tally:
    """Answers by kind of question: right, refused, and what else they were."""

    twin: ah.TwinBridge
    expected: dict[tuple[str, int], list[list[Tensor]]]
    right: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, name: str, text: int) -> bool:
        """Ask one question; False if it was refused."""
        try:
            found = ASKS[name](self.twin, TEXTS[text])
        except ah.AllHeadsError:
            self.refused[name] += 1
            return False
        except BaseException as error:
            self.faults.append((name, f"{type(error).__name__}: {str(error)[:200]}"))
        else:
            if any(_same(found, expected) for expected in self.expected[name, text]):
                self.right[name] += 1
            else:
                self.faults.append((name, f"a wrong answer on text {text}"))
        return True


def _same(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Up to what another evaluation, or another order of rounding, changes."""
    return len(found) == len(expected) and all(
        one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-3, atol=2e-4, equal_nan=True)
        for one, other in zip(found, expected, strict=True)
    )


def expectations(twin: ah.TwinBridge) -> dict[tuple[str, int], list[list[Tensor]]]:
    """What each question on each text gives alone, and, if it can be asked then, while the edit is made."""
    found = {(name, text): [ask(twin, TEXTS[text])] for name, ask in ASKS.items() for text in range(len(TEXTS))}
    try:
        with torch.no_grad(), twin.banks[1].edit() as heads:
            heads.W_O[3] *= -40.0
            for (name, text), answers in found.items():
                with suppress(ah.AllHeadsError):  # of edited heads some questions cannot be asked
                    answers.append(ASKS[name](twin, TEXTS[text]) if name != "edit" else answers[0])
            raise _Undone
    except _Undone:
        return found


def attempts(count: int, seed: int, asks: tuple[str, ...] = tuple(ASKS)) -> Tally:
    """Ask so many random questions in four threads at once."""
    twin = ah.convert(zoo.build(FAMILY, seed=3).bridge)
    tally = Tally(twin, expectations(twin))
    before = [run(twin, ids) for ids in TEXTS]
    hooks = _hooks(twin)

    def work(thread: int) -> None:
        rng = random.Random(f"{seed} {thread}")
        for _ in range(count // THREADS):
            if not tally.ask(rng.choice(asks), rng.randrange(len(TEXTS))):
                time.sleep(rng.uniform(0.0, 0.1))  # so that some are not refused

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for ids, (logits,) in zip(TEXTS, before, strict=True):
        if not torch.equal(run(twin, ids)[0], logits):
            tally.faults.append(("afterwards", f"other logits for a text of {ids.shape[1]} tokens"))
    if any(bank.frozen is not None or bank.edited is not None for bank in twin.banks) or _hooks(twin) != hooks:
        tally.faults.append(("afterwards", "something is still frozen, edited or hooked"))
    return tally


def _hooks(twin: ah.TwinBridge) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in twin.modules()) + sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in twin.original_model.modules()
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=800)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", nargs="*", default=list(ASKS), help="questions; all of them if left out")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    tally = attempts(chosen.count, chosen.seed, tuple(chosen.only))
    failed = Counter(name for name, _ in tally.faults)
    for (name, fault), times in Counter(tally.faults).most_common():
        print(f"{name}, {times} times: {fault}")
    print("| question | right | refused | failures |\n| --- | --- | --- | --- |")
    for name in dict.fromkeys([*chosen.only, *failed]):
        print(f"| {name} | {tally.right[name]} | {tally.refused[name]} | {failed[name]} |")
    print(f"| all | {tally.right.total()} | {tally.refused.total()} | {failed.total()} |")
    print(f"{time.monotonic() - started:.0f} s")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
