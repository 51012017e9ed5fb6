"""Families x functions: what can be read of the twin of every family, and the sentence where something cannot.

Every cell is a figure, whose meaning is that of its column, or an `AllHeadsError`. Anything else that is raised is a
fault of the toolkit, and passes through. Twins are in float64, so that what is exact shows as rounding.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import allheads as ah
from allheads import AllHeadsError, TwinBridge
from allheads_labs import zoo
from allheads_labs.zoo.families import NOT_IN_FLOAT64
from allheads_labs.zoo.inputs import WORDS

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


def _pattern(subject: Subject, of_neurons: bool) -> float:
    """The largest error of completeness of a score."""
    found = [ah.attribute_pattern(subject.twin, subject.sample.inputs, label) for label in subject.labels(of_neurons)]
    return max(side.completeness_error for why in found for side in (why.query, why.key) if side is not None)


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
    "pattern of a head": lambda subject: _pattern(subject, of_neurons=False),
    "pattern of a neuron": lambda subject: _pattern(subject, of_neurons=True),
    "ablate": _ablate,
    "means": _means,
    "head_scores": _head_scores,
    "sweep": _sweep,
    "attention": _attention,
    "pure": _pure,
}
