"""Families x functions: what can be read of the twin of every family, and the sentence where something cannot.

Every cell is a figure, whose meaning is that of its column, or an `AllHeadsError`. Anything else that is raised is a
fault of the toolkit, and passes through. Twins are in float64, so that what is exact shows as rounding.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import allheads as ah
from allheads import AllHeadsError, TwinBridge
from allheads_labs import zoo
from allheads_labs.zoo.families import NOT_IN_FLOAT64
from allheads_labs.zoo.inputs import LENGTH, WORDS

#: Parts that a graph keeps.
BUDGET = 20


@dataclass(frozen=True)
class Reading:
    """What came of each capability for one family: a figure, or the sentence that refuses it."""

    name: str
    figures: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """A twin and what it is asked about: its sample's input, and a random direction of its outputs at the end."""

    sample: zoo.Sample
    twin: TwinBridge

    @property
    def outputs(self) -> Tensor:
        """What the twin gives at the last position."""
        outputs = self.sample.run(self.twin)
        return outputs[0, -1] if outputs.ndim == 3 else outputs[0]

    @cached_property
    def target(self) -> Tensor:
        """The direction."""
        outputs = self.outputs
        return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)

    @cached_property
    def ran(self) -> set[str] | None:
        """Sublayers that run on the input; None where attribution does not say."""
        try:
            return set(ah.attribute(self.twin, self.sample.inputs, self.target).effects)
        except AllHeadsError:
            return None

    def labels(self, of_neurons: bool) -> list[str]:
        """The first and the last head, or neuron, that runs. Raises `AllHeadsError` where there is none."""
        labels = (head.label.neuron for head in self.twin.heads() if head.of_neuron == of_neurons)
        found = [str(label) for label in labels if self.ran is None or f"{label.stem}.{label.kind}" in self.ran]
        if not found:
            kind = "neuron" if of_neurons else "head"
            raise AllHeadsError(f"a {kind} that runs on the input", "a twin without one", "Look at its other parts.")
        return list(dict.fromkeys([found[0], found[-1]]))


def read(name: str, seed: int = 0) -> Reading:
    """Try everything on one family that converts.

    Raises `NotBuilt` and `AllHeadsError` for a family that has no twin.

    >>> read("GPT2LMHeadModel").figures["frozen"] < 1e-12
    True
    """
    dtype = torch.float32 if name in NOT_IN_FLOAT64 else torch.float64
    sample = zoo.build(name, seed=seed, dtype=dtype)
    subject, found = Subject(sample, ah.convert(sample.bridge)), Reading(name)
    for capability, figure in CAPABILITIES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.figures[capability] = figure(subject)
        except AllHeadsError as refusal:
            found.refusals[capability] = str(refusal)
    return found


def _attribute(subject: Subject) -> float:
    """The largest error of completeness, or of the target against the twin's own, relative to its size."""
    found = ah.attribute(subject.twin, subject.sample.inputs, subject.target)
    own = subject.outputs * subject.target
    return max(found.completeness_error, abs(found.target_value - float(own.sum())) / float(own.abs().sum()))


def _frozen(subject: Subject) -> float:
    """The largest difference between the frozen twin's outputs and the twin's own, relative to these."""
    own = subject.outputs
    with ah.frozen(subject.twin, subject.sample.inputs):
        return float((subject.outputs - own).abs().max() / own.abs().max())


def _graph(subject: Subject) -> float:
    """The largest error of a node's effect, relative to it, when the node is changed in the frozen twin."""
    found = ah.graph(subject.twin, subject.sample.inputs, subject.target, budget=BUDGET)
    return found.confirm().frozen_error


def _picture(subject: Subject) -> float:
    """How many nodes are drawn, read again from a file."""
    found = ah.graph(subject.twin, subject.sample.inputs, subject.target, budget=BUDGET)
    with tempfile.TemporaryDirectory() as folder:
        again = type(found).load(found.save(f"{folder}/graph.json"))
    drawn, same = (ah.plots.graph(graph).data["graph"]["nodes"] for graph in (found, again))
    return len(drawn) if drawn == same else math.nan


def _pattern(subject: Subject, of_neurons: bool) -> float:
    """The largest error of completeness of a score."""
    found = [ah.attribute_pattern(subject.twin, subject.sample.inputs, label) for label in subject.labels(of_neurons)]
    return max(side.completeness_error for why in found for side in (why.query, why.key) if side is not None)


@contextmanager
def _single_tokens(subject: Subject, label: str) -> Iterator[None]:
    """Let what a head or neuron reads be the embedding of one token at every position: nothing else writes before."""
    twin, parsed = subject.twin, ah.Label.parse(label)
    stack, end = twin.index.location(parsed).stack, twin.index.location(parsed).layer
    if parsed.kind == "X":  # it reads the end of the encoder
        stack, end = "encoder_blocks", sys.maxsize
    shown = re.compile(rf"({re.escape(stack)}\.(\d+)\.)((?!\w*(?:ln|norm))\w+(\.o)?\.hook_out|hook_mlp_out)")
    found = [match for name in twin.hook_dict if (match := shown.fullmatch(name))]
    # What is added to the stream, and not what a norm behind it makes of both.
    better = {f"{match[0].removesuffix('hook_out')}o.hook_out": match[0] for match in found}
    better |= {f"{match[1]}hook_mlp_out": match[0] for match in found if match[3].endswith("mlp.hook_out")}
    silent = [
        match[0]
        for match in found
        if match[0] not in {worse for name, worse in better.items() if name in twin.hook_dict}
        and (int(match[2]) < end or (int(match[2]) == end and parsed.kind == "N" and "mlp" not in match[3]))
    ]
    silent += [name for name in twin.hook_dict if re.fullmatch(r"(decoder_)?pos_embed.hook_out|token_type.*out", name)]
    with twin.hooks(fwd_hooks=[(name, lambda value, hook: torch.zeros_like(value)) for name in silent]):
        yield


def _captured(subject: Subject, ids: Tensor, names: Sequence[str]) -> list[Tensor]:
    """What passes these hook points in a run on some ids; nothing of an expert that no token chose."""
    twin = subject.twin
    decoder: dict[str, Any] = {"decoder_input": ids} if "decoder_input" in subject.sample.inputs else {}
    with torch.no_grad():
        cache = twin.run_with_cache(ids, names_filter=list(names), **decoder)[1]
    return [cache[name][0].double() for name in names if name in cache]


def _circuits(subject: Subject, of_neurons: bool) -> dict[str, Any]:
    """The circuits that can be read, by label. Raises `AllHeadsError` where none can."""
    found, refusals = {}, []
    for label in subject.labels(of_neurons):
        try:
            found[label] = ah.weights.circuit(subject.twin, label)
        except AllHeadsError as refusal:
            refusals.append(refusal)
    if not found:
        raise refusals[0]
    return found


def _head_circuit(subject: Subject) -> float:
    """The largest error of what a head carries from single tokens, and of what it does to logits, relative to them."""
    errors = [0.0]
    for label, circuit in _circuits(subject, of_neurons=False).items():
        errors += [] if circuit.value is None else [_carried_error(subject, label, circuit)]
        errors += [] if circuit.write is None else [_written_error(subject, label, circuit.write.double())]
    return max(errors)


def _carried_error(subject: Subject, label: str, circuit: ah.weights.HeadCircuit) -> float:
    """What the head carries in a run on single tokens, compared with the circuit's values along its pattern.

    A gate is the same wherever the destination looks: it is read off where it looks at its own token alone.
    """
    assert circuit.value is not None
    value, head, found = circuit.value.double(), subject.twin.head(label), []
    tokens = torch.randint(*WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    for ids in (tokens[:, -1:].expand_as(tokens), tokens):
        with _single_tokens(subject, label):
            z, pattern = _captured(subject, ids, [f"{head.hook_prefix}hook_{name}" for name in ("z", "pattern")])
        carried = z.reshape(len(z), -1, value.shape[1])[-1, head.number]
        found.append((carried, pattern[head.number, -1] @ value[ids[0]]))
    (alone, own), (carried, expected) = found
    expected = expected * (alone / own if circuit.gated else 1.0)
    return float((carried - expected).norm() / carried.norm())


def _written_error(subject: Subject, label: str, write: Tensor) -> float:
    """The ratio of a head's direct effects on two random targets, compared with that of what it carries times these.

    Norms on the way, and nothing else, scale both. Where logits are capped there is no such ratio: 0.
    """
    draw, twin = torch.Generator().manual_seed(0), subject.twin
    targets = torch.randn(2, write.shape[1], generator=draw, dtype=torch.float64).to(write.device)
    targets -= targets.mean(1, keepdim=True)
    asked = [ah.attribute(twin, subject.sample.inputs, target.to(subject.outputs)) for target in targets]
    parsed, prefix = ah.Label.parse(label), twin.head(label).hook_prefix
    rows = [found.direct[f"{parsed.stem}.{parsed.kind}"][parsed.index].double() for found in asked]
    position = int(rows[0].abs().argmax())  # of those that the targets are read at
    with torch.no_grad(), twin.hooks(fwd_hooks=[(f"{prefix}hook_z", lambda z, hook: seen.append(z[0].double()))]):
        seen: list[Tensor] = []
        subject.sample.run(twin)
    carried = seen[-1].reshape(len(seen[-1]), -1, len(write))[position, parsed.index]
    first, second = carried @ write @ targets.T
    if any(found.intercept for found in asked):
        return 0.0
    cross = torch.stack([rows[0][position] * second, rows[1][position] * first])
    return float((cross[0] - cross[1]).abs() / cross.abs().max().clamp_min(1e-300))


def _neuron_circuit(subject: Subject) -> float:
    """The largest error of the preactivation of a neuron on the token that opens it most, relative to it.

    0 where nothing is compared: streams that do not begin with tokens, or into which a mixer writes that is not shown.
    """
    errors = [0.0]
    for label, circuit in _circuits(subject, of_neurons=True).items():
        neuron = subject.twin.neuron(label)[0]
        for most in circuit.opens:
            with _single_tokens(subject, label):
                seen = _captured(subject, torch.full((1, LENGTH), most.token), [f"{neuron.hook_prefix}hook_pre"])
            rows = [pre[:, neuron.label.index] for pre in seen]
            errors += [abs(float(row[-1]) / most.value - 1.0) for row in rows if torch.allclose(row, row[:1])]
    return max(errors)


def _composition(subject: Subject, kind: str) -> float:
    """How many pairs are compared."""
    return ah.weights.composition(subject.twin, kind, k=1).count


def _ablate(subject: Subject) -> float:
    """The largest change of the outputs when a head or a neuron writes nothing, relative to these."""
    own, changes = subject.outputs, []
    for label in (*subject.labels(of_neurons=False), *subject.labels(of_neurons=True)):
        with ah.ablate(subject.twin, [label]):
            changes.append(float((subject.outputs - own).abs().max() / own.abs().max()))
    return max(changes)


def _means(subject: Subject) -> float:
    """How many hook points have a mean."""
    return len(ah.corpus.means(subject.twin, [subject.sample.inputs]).values)


def _head_scores(subject: Subject) -> float:
    """The largest score for induction."""
    return ah.corpus.head_scores(subject.twin).top("induction", 1)[0][1]


def _sweep(subject: Subject) -> float:
    """The share of neurons that are ever positive."""
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(*WORDS, (length,), generator=draw) for length in (40, 25)]
    return float((ah.corpus.sweep(subject.twin, texts).neurons()["open"] > 0).mean())


def _attention(subject: Subject) -> float:
    """How many heads are drawn."""
    return len(ah.plots.attention(subject.twin, subject.sample.inputs).data["heads"])


def _pure(subject: Subject) -> float:
    """The largest difference between what the twin's pure form gives and the twin's own outputs, relative to these.

    Words are asked about without their image; an image or a sound by what its layers begin with.
    """
    twin, ids = subject.twin, subject.sample.inputs["input"]
    rest = {name: value for name, value in subject.sample.inputs.items() if name == "decoder_input"}
    ids = ids if ids.is_floating_point() else ids[ids < WORDS[1]][None]
    begins = "embed_ln.hook_in" if "embed_ln.hook_in" in twin.hook_dict else "blocks.0.hook_in"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ah.pure.export(twin, f"{folder}/twin.safetensors")
        own, cache = twin.run_with_cache(ids, **rest, names_filter=[begins] if ids.is_floating_point() else [])
        begun = cache[begins] if ids.is_floating_point() else ids
        ours = ah.pure.run(f"{folder}/twin.safetensors", begun, *rest.values())
    own = own.view_as(ours) if isinstance(own, Tensor) else own[0]
    return float((ours - own).abs().max() / own.abs().max())


#: What is tried, and what its figure says.
CAPABILITIES: dict[str, Callable[[Subject], float]] = {
    "attribute": _attribute,
    "frozen": _frozen,
    "graph": _graph,
    "picture": _picture,
    "pattern of a head": lambda subject: _pattern(subject, of_neurons=False),
    "pattern of a neuron": lambda subject: _pattern(subject, of_neurons=True),
    "circuit of a head": _head_circuit,
    "circuit of a neuron": _neuron_circuit,
    "neuron to query": lambda subject: _composition(subject, "neuron->query"),
    "neuron to V": lambda subject: _composition(subject, "neuron->V"),
    "neuron to Q": lambda subject: _composition(subject, "neuron->Q"),
    "neuron to K": lambda subject: _composition(subject, "neuron->K"),
    "ablate": _ablate,
    "means": _means,
    "head_scores": _head_scores,
    "sweep": _sweep,
    "attention": _attention,
    "pure": _pure,
}
