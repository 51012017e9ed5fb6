"""Seeded mutations of a source or its twin, to see that verify notices every one that changes an output.

    python -m tests.adversary.mutations --count 2000 --seed 0

Each attempt changes one thing of a fresh pair, verifies it on a text of a few tokens, and takes the change back.
*Caught*: verify refuses or fails. *Harmless*: it passes, and on random texts as long as the model reads no output is
further from the source than an honest twin's, times a few. *Missed*: it passes, and some output is.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

import allheads as ah
from allheads.gates.activations import ACTIVATIONS
from allheads.gates.approximation import approximate
from allheads.heads.bank import HeadBank
from allheads.models.compat import network_module, network_path
from allheads.models.graft import HeadBankBridge
from allheads_labs import zoo
from allheads_labs.zoo.inputs import WORDS

FAMILIES = (
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
    "MixtralForCausalLM",
    "Gemma2ForCausalLM",
    "T5WithLMHeadModel",
    "BertForMaskedLM",
)
#: Attempts on one pair before it is made anew.
_ON_ONE_PAIR = 25
#: How many times an honest twin's difference is no harm.
_FEW = 4.0
_FACTORS = (7.0, 1.5, 1.01, -1.0, 0.999, 0.0)


@dataclass
class Pair:
    """A source, its twin, texts to judge by, and how far the honest twin is away on them, by evaluation."""

    family: str
    source: Any
    twin: Any
    texts: list[dict[str, Tensor]]
    honest: dict[str, float]

    @classmethod
    def made(cls, family: str, seed: int) -> Pair:
        """Build and convert one family."""
        sample = zoo.build(family, seed=seed)
        pair = cls(family, sample.bridge, ah.convert(sample.bridge), [], {})
        pair.texts = [pair.text(random.Random(number), 24) for number in range(2)]
        size = max(float(_run(pair.source, text).abs().max()) for text in pair.texts)
        rounding = 16 * torch.finfo(torch.float32).eps * size
        pair.honest = {name: max(rounding, gap) for name, gap in pair.gaps().items()}
        return pair

    def text(self, drawn: random.Random, length: int) -> dict[str, Tensor]:
        """A random text, for both stacks of an encoder-decoder."""
        names = ("input", "decoder_input") if self.family.startswith("T5") else ("input",)
        return {name: torch.tensor([[drawn.randrange(*WORDS) for _ in range(length)]]) for name in names}

    def gaps(self) -> dict[str, float]:
        """The largest difference of an output, with the twin as it stands, and by every head."""
        found = {"as it stands": self._gap()}
        with self.twin.evaluated("slots"):
            found["slots"] = self._gap()
        return found

    def _gap(self) -> float:
        gaps = [(_run(self.source, text) - _run(self.twin, text)).abs().max() for text in self.texts]
        return float(torch.stack(gaps).nan_to_num(nan=torch.inf).max())

    @property
    def moved(self) -> bool:
        """Is an output further away than an honest twin's, of the source as it is now?"""
        largest = max(self.gaps().values())
        if largest <= _FEW * max(self.honest.values()):
            return False
        honest = replace(self, twin=ah.convert(self.source))
        return largest > _FEW * max(honest.gaps().values())


def _run(bridge: Any, text: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return bridge(**text)


#: Changes something of a pair, says what, and leaves on the stack how it is taken back; None if there is nothing.
Mutation = Callable[[Pair, random.Random, ExitStack], str | None]


def _tensors(network: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """Parameters, buffers and tensors beside them: path, where they are kept, name."""
    found = []
    for path, module in network.named_modules():
        for kept in (module._parameters, module._buffers, vars(module)):
            found += [(path, kept, name) for name, value in kept.items() if isinstance(value, Tensor) and value.numel()]
    return found


def _changed(tensor: Tensor, drawn: random.Random) -> tuple[str, Tensor]:
    """The tensor with all, one row or one entry of it scaled, moved, zeroed or exchanged."""
    new = tensor.detach().clone()
    if not new.is_floating_point():
        new.view(-1)[drawn.randrange(new.numel())] = 0
        return "an entry of integers is 0", new
    what = drawn.choice(("scale", "scale row", "scale entry", "add", "add entry", "permute", "zero entry", "zero row"))
    rows = new.view(len(new), -1) if new.ndim > 1 else new.view(-1, 1) if new.ndim else new.view(1, 1)
    row = drawn.randrange(len(rows))
    entry = drawn.randrange(rows.shape[1])
    factor, size = drawn.choice(_FACTORS), float(new.abs().mean()) or 1.0
    amount = size * drawn.choice((1e-2, 1.0, 100.0))
    if what == "scale":
        rows *= factor
    elif what == "scale row":
        rows[row] *= factor
    elif what == "scale entry":
        rows[row, entry] *= factor
    elif what == "add":
        rows += amount
    elif what == "add entry":
        rows[row, entry] += amount
    elif what == "permute":
        other = drawn.randrange(len(rows))
        rows[[row, other]] = rows[[other, row]]
    elif what == "zero entry":
        rows[row, entry] = 0
    else:
        rows[row] = 0
    return f"{what} (row {row}, entry {entry}, factor {factor}, amount {amount:.2g})", new


def _tensor(side: str) -> Mutation:
    def mutate(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
        path, kept, name = drawn.choice(_tensors(getattr(pair, side).original_model))
        old = kept[name]
        what, new = _changed(old, drawn)
        kept[name] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        undo.callback(kept.__setitem__, name, old)
        return f"{side} {network_path(path)}.{name}: {what}"

    return mutate


def _in_place(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    """In shared memory: on both sides, except where they are copies."""
    path, kept, name = drawn.choice(_tensors(pair.source.original_model))
    old = kept[name].detach().clone()
    what, new = _changed(old, drawn)
    undo.callback(kept[name].detach().copy_, old)
    kept[name].detach().copy_(new)
    return f"both {network_path(path)}.{name}: {what}"


def _number(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    side = drawn.choice(("source", "twin"))
    places = [
        (path, vars(module), name)
        for path, module in getattr(pair, side).original_model.named_modules()
        for name, value in vars(module).items()
        if type(value) is float and "backward" not in name
    ]
    path, kept, name = drawn.choice(places)
    new = drawn.choice((10.0 * kept[name], 1.01 * kept[name], kept[name] + 1.0, 0.5 * kept[name]))
    undo.callback(kept.__setitem__, name, kept[name])
    said = f"{side} {network_path(path)}.{name}: {kept[name]} is now {new}"
    kept[name] = new
    return said


def _set(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _gates(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    layer = drawn.choice(pair.twin.layers)
    bank, gates = layer.bank, layer.bank.gates
    what = drawn.choice(
        ("alpha", "delta", "offset", "slope", "error", "domain", "claim both", "activation", "other fit")
    )
    factor = drawn.choice((1.00018, 1.01, 2.0))
    if what in ("alpha", "delta"):
        numbers = list(getattr(gates, what))
        numbers[drawn.randrange(len(numbers))] *= factor
        new = replace(gates, **{what: tuple(numbers)}, max_error=drawn.choice((gates.max_error, 1e9)))
    elif what in ("offset", "slope"):
        heads = list(gates.gates)
        number = drawn.randrange(len(heads))
        values = list(getattr(heads[number], f"{what}s"))
        values[drawn.randrange(len(values))] *= factor
        heads[number] = replace(heads[number], **{f"{what}s": tuple(values)})
        new = replace(gates, gates=tuple(heads))
    elif what == "activation":
        new = replace(gates, activation=drawn.choice(list(ACTIVATIONS.values())))
    elif what == "other fit":
        name = drawn.choice(("silu", "gelu", "gelu_tanh", "relu"))
        new = approximate(name, gated=bank.gated, tolerance=drawn.choice((1e-2, 1e-3, 1e-5, 1e-6)))
    else:
        claims = {"error": {"max_error": 1e9}, "domain": {"domain": torch.inf}}
        new = replace(gates, **claims.get(what, {"max_error": 1e9, "domain": torch.inf}))
    _set(undo, bank, "gates", new)
    return f"{layer.location.stem} gates: {what} ({factor})"


def _tables(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    """The coefficients that a bank keeps for each dtype."""
    layer = drawn.choice(pair.twin.layers)
    layer.bank.weights()
    kept = layer.bank._tables
    key = drawn.choice(list(kept))
    undo.callback(kept.clear)
    table = drawn.randrange(4)
    what, new = _changed(kept[key][table], drawn)
    kept[key] = (*kept[key][:table], new, *kept[key][table + 1 :])
    return f"{layer.location.stem} table {table}: {what}"


def _domain(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    number = drawn.randrange(len(pair.twin.layers))
    layer = pair.twin.layers[number]
    limit = drawn.choice((torch.inf, 0.1, 2 * layer.domain.limit))
    other = replace(layer, domain=replace(layer.domain, limit=limit, by_theorem=drawn.choice((True, False))))
    _set(undo, pair.twin, "layers", (*pair.twin.layers[:number], other, *pair.twin.layers[number + 1 :]))
    return f"{layer.location.stem} domain: {limit}"


def _tolerance(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    tolerance = drawn.choice((1.0, 1e-2, 1e-12))
    _set(undo, pair.twin, "tolerance", tolerance)
    also = _tensor("twin")(pair, drawn, undo) if drawn.random() < 0.5 else ""
    return f"tolerance {tolerance} {also}"


def _evaluation(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    layer = drawn.choice(pair.twin.layers)
    dtype = drawn.choice((None, torch.float64, torch.bfloat16, torch.float16))
    _set(undo, layer.bank, "evaluation", drawn.choice(("slots", "attention", "closed")))
    _set(undo, layer.bank, "pattern_dtype", dtype)
    return f"{layer.location.stem} evaluation {layer.bank.evaluation}, {dtype}"


def _swap(pair: Pair, drawn: random.Random, undo: ExitStack) -> str | None:
    """Two modules of one class change places in the twin's network."""
    places: dict[str, list[tuple[str, dict[str, Any], str]]] = {}
    for path, parent in pair.twin.original_model.named_modules():
        for name, child in parent._modules.items():
            if child is not None and not isinstance(child, (HookPoint, nn.Identity, nn.Dropout)):
                places.setdefault(type(child).__name__, []).append((path, parent._modules, name))
    several = [found for found in places.values() if len(found) > 1]
    (path, mine, name), (_, theirs, other) = drawn.sample(drawn.choice(several), 2)
    for kept, key in ((mine, name), (theirs, other)):
        undo.callback(kept.__setitem__, key, kept[key])
    mine[name], theirs[other] = theirs[other], mine[name]
    return f"swap of {network_path(path)}.{name} with another {type(mine[name]).__name__}"


def _hook(pair: Pair, drawn: random.Random, undo: ExitStack) -> str | None:
    """A function that changes what passes a module, or the functions that were there taken away."""
    side = drawn.choice(("source", "twin"))
    modules = [(path, module) for path, module in getattr(pair, side).original_model.named_modules() if path]
    path, module = drawn.choice(modules)
    if drawn.random() < 0.3:
        kept = vars(module)["_forward_hooks"]
        undo.callback(kept.update, dict(kept))
        kept.clear()
        return f"{side} {network_path(path)}: hooks removed"
    factor = drawn.choice(_FACTORS[:-1])

    def scale(_: Any, __: Any, out: Any) -> Any:
        return factor * out if isinstance(out, Tensor) and out.is_floating_point() else out

    if isinstance(module, HookPoint):
        module.add_hook(lambda value, hook: scale(None, None, value))
        undo.callback(module.remove_hooks, "fwd")
    else:
        undo.callback(module.register_forward_hook(scale).remove)
    return f"{side} {network_path(path)}: a hook of factor {factor}"


def _edit(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    layer = drawn.choice(pair.twin.layers)
    bank: HeadBank = layer.bank
    undo.callback(setattr, bank, "edited", None)
    # An edit that leaves NaN, as none times infinity does, is undone at once.
    with suppress(ah.AllHeadsError), bank.edit() as heads:
        name = drawn.choice([name for name, _ in heads.named_parameters()])
        tensor = getattr(heads, name)
        what, new = _changed(tensor, drawn)
        tensor.copy_(new)
    return f"{layer.location.stem} edited {name}: {what}"


def _around(pair: Pair, drawn: random.Random, undo: ExitStack) -> str | None:
    """The source's own MLP, or a function that calls it, where the bank was."""
    mlps = dict(pair.source.original_model.named_modules())
    banks = [(p, m) for p, m in pair.twin.original_model.named_modules() if isinstance(m, HeadBankBridge) and p in mlps]
    if not banks:
        return None
    path, component = drawn.choice(banks)
    mlp = network_module(mlps[path])
    if drawn.random() < 0.5:
        vars(component)["forward"] = mlp.forward
        undo.callback(vars(component).pop, "forward")
        return f"{network_path(path)}: forward of the source's module"
    outer, _, name = path.rpartition(".")
    kept = dict(pair.twin.original_model.named_modules())[outer]._modules
    undo.callback(kept.__setitem__, name, component)
    kept[name] = mlp
    return f"{network_path(path)}: the source's module"


def _layers(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    """The record of layers names another bank."""
    number = drawn.randrange(len(pair.twin.layers))
    layer = pair.twin.layers[number]
    copied = HeadBank(layer.bank.views, layer.bank.gates)
    other = replace(layer, bank=copied)
    _set(undo, pair.twin, "layers", (*pair.twin.layers[:number], other, *pair.twin.layers[number + 1 :]))
    return f"{layer.location.stem}: a copy of its bank is recorded"


def _freeze(pair: Pair, drawn: random.Random, undo: ExitStack) -> str:
    layer = drawn.choice(pair.twin.layers)
    layer.bank.freeze()
    undo.callback(layer.bank.unfreeze)
    return f"{layer.location.stem}: frozen"


#: What is tried, and how often beside the others.
KINDS: dict[str, tuple[Mutation, int]] = {
    "tensor of the twin": (_tensor("twin"), 10),
    "tensor of the source": (_tensor("source"), 10),
    "shared memory": (_in_place, 3),
    "number": (_number, 5),
    "gates": (_gates, 5),
    "tables of gates": (_tables, 2),
    "domain": (_domain, 1),
    "tolerance": (_tolerance, 2),
    "evaluation": (_evaluation, 2),
    "swap": (_swap, 4),
    "hooks": (_hook, 4),
    "edit": (_edit, 3),
    "around a bank": (_around, 1),
    "record of layers": (_layers, 1),
    "frozen": (_freeze, 1),
}


@dataclass(frozen=True)
class Attempt:
    """What was tried, and what became of it: caught, harmless or missed."""

    family: str
    kind: str
    what: str
    outcome: str
    reason: str


def attempts(count: int, seed: int) -> Iterator[Attempt]:
    """So many mutations, one after the other; raises AssertionError where an honest pair does not pass."""
    drawn = random.Random(seed)
    pairs: dict[str, Pair] = {}
    for number in range(count):
        family = FAMILIES[number % len(FAMILIES)]
        if number // len(FAMILIES) % _ON_ONE_PAIR == 0:
            pairs[family] = Pair.made(family, seed + number)
            honest = ah.verify(pairs[family].source, pairs[family].twin, pairs[family].text(drawn, 5))
            assert honest.passed, (family, honest.failures)
        kind = drawn.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
        yield attempt(pairs[family], kind, drawn)


def attempt(pair: Pair, kind: str, drawn: random.Random) -> Attempt:
    """Change one thing, verify, judge, and take the change back."""
    with ExitStack() as undo:
        what = KINDS[kind][0](pair, drawn, undo) or "nothing"
        outcome, reason = _judged(pair, pair.text(drawn, drawn.randint(1, 5)))
    return Attempt(pair.family, kind, what, outcome, reason)


def _judged(pair: Pair, text: dict[str, Tensor]) -> tuple[str, str]:
    try:
        report = ah.verify(pair.source, pair.twin, text)
    except ah.AllHeadsError as error:
        return "caught", str(error)
    except Exception as error:  # a network that no longer runs cannot pass
        return "caught", f"{type(error).__name__}: {error}"
    if not report.passed:
        return "caught", report.failures[0]
    return ("missed", "") if pair.moved else ("harmless", "")


def main() -> None:
    """Run many, and print a table and everything that was missed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    for number, found in enumerate(attempts(options.count, options.seed), 1):
        counts[found.kind, found.outcome] += 1
        counts["all", found.outcome] += 1
        if found.outcome == "missed":
            print(found, flush=True)
        if number % 200 == 0 or number == options.count:
            _print(counts)
    raise SystemExit(bool(counts["all", "missed"]))


def _print(counts: Counter[tuple[str, str]]) -> None:
    print(f"{'kind':24}{'attempts':>10}{'caught':>10}{'harmless':>10}{'missed':>10}")
    for kind in (*KINDS, "all"):
        outcomes = [counts[kind, outcome] for outcome in ("caught", "harmless", "missed")]
        print(f"{kind:24}" + "".join(f"{number:>10}" for number in (sum(outcomes), *outcomes)), flush=True)


if __name__ == "__main__":
    main()
