"""What was asked: the twin, the prompt, the metric and the rule, kept inside every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.attribution.metric import Metric, OutputShape, Target, metric_of
from allheads.attribution.rules import Rule, rule_named
from allheads.errors import AllHeadsError
from allheads.models.observe import Inputs, output_kind, run_bridge
from allheads.twin.autoencoder import SparseAutoencoder
from allheads.twin.labels import Label
from allheads.twin.prompt import Texts, one_prompt, token_texts
from allheads.twin.sites import sites
from allheads.twin.twin import TwinBridge, require_twin


@dataclass(frozen=True, eq=False)
class Question:
    """Why is ``metric`` what it is, on these ``inputs``, in this twin, under this rule?

    ``inputs`` are arguments of the twin by name. ``unfrozen`` are hook points of queries or keys that keep their
    gradient whatever the rule holds fixed. ``autoencoders`` split what passes their hook points.
    """

    twin: TwinBridge = field(repr=False)
    inputs: Mapping[str, Tensor]
    metric: Metric
    rule: Rule
    unfrozen: tuple[str, ...] = ()
    autoencoders: tuple[SparseAutoencoder, ...] = ()

    @classmethod
    def of(cls, twin: TwinBridge, tokens: Texts | Inputs, target: Target, rule: str | Rule, position: int) -> Question:
        """A question as users ask it. Raises `AllHeadsError` for a prompt, target, rule or position that is none."""
        chosen, inputs = rule_named(rule), one_prompt(require_twin(twin), tokens)
        metric = metric_of(twin, target, position, _output_shape(twin, inputs))
        return cls(twin, inputs, metric, chosen)

    @property
    def ids(self) -> Int[Tensor, "1 pos"]:
        """The ids of the prompt: those that the decoder has written, beside an encoder.

        Raises `AllHeadsError` for a prompt that is no text.
        """
        ids = self._ids("decoder_input" if "decoder_input" in self.inputs else "input")
        if ids is None:
            raise AllHeadsError("a prompt of tokens", "an image or a sound", "Use the inputs of the question.")
        return ids

    @property
    def tokens(self) -> list[str]:
        """What the tokens of the prompt say: those that the decoder has written, beside an encoder."""
        return token_texts(self.twin, self.ids)

    @property
    def output_tokens(self) -> list[str]:
        """The same, or nothing where the prompt is no text."""
        return [] if self._ids("input") is None else self.tokens

    def tokens_at(self, label: Label, length: int) -> list[str]:
        """What stands at the positions of a head or neuron: tokens, or the numbers of patches and frames."""
        return self._texts(self._stacks[label.stream], length)

    def token_of(self, begin: str, position: int, length: int) -> str:
        """What stands where a stream begins."""
        return self._texts("decoder_blocks" if begin.startswith("decoder_") else begin, length)[position]

    @cached_property
    def _stacks(self) -> dict[str, str]:
        return {site.location.tower: site.stack for site in sites(self.twin)}

    def id_of(self, begin: str, position: int, length: int) -> int | None:
        """The id of the token that stands there; None for a patch or a frame."""
        ids = self._row("decoder_blocks" if begin.startswith("decoder_") else begin, length)
        return None if ids is None else int(ids[0, position])

    def _texts(self, stack: str, length: int) -> list[str]:
        ids = self._row(stack, length)
        return [f"#{position}" for position in range(length)] if ids is None else token_texts(self.twin, ids)

    def _row(self, stack: str, length: int) -> Tensor | None:
        ids = self._ids("decoder_input" if stack == "decoder_blocks" else "input")
        return None if ids is None or ids.shape[-1] != length else ids

    def _ids(self, name: str) -> Tensor | None:
        ids = self.inputs.get(name)
        return None if ids is None or ids.is_floating_point() else ids

    def run(self, rows: int = 1) -> Float[Tensor, "rows pos out"]:
        """What the twin gives for so many equal rows of the prompt; classes are outputs at one position."""
        inputs = {name: value.expand(rows, *value.shape[1:]) for name, value in self.inputs.items()}
        out = run_bridge(self.twin, inputs)
        return out[:, None] if out.ndim == 2 else out

    def about(self, metric: Metric, unfrozen: tuple[str, ...] = ()) -> Question:
        """The same question about another metric."""
        return replace(self, metric=metric, unfrozen=unfrozen)


def _output_shape(twin: TwinBridge, inputs: Mapping[str, Tensor]) -> OutputShape:
    hidden = output_kind(twin) != "logits"
    ids = inputs.get("decoder_input", inputs.get("input"))
    if not hidden and ids is not None and not ids.is_floating_point():
        return OutputShape("tokens", ids.shape[-1], twin.cfg.d_vocab_out)
    # What comes of images and sounds is known when it is there, and then for all that have their shape.
    shapes = tuple((name, value.shape) for name, value in inputs.items())
    known = _SHAPES.setdefault(twin, {})
    if shapes not in known:
        with torch.no_grad():
            out = run_bridge(twin, inputs)
        length = out.shape[1] if out.ndim == 3 else 1
        known[shapes] = OutputShape("dimensions" if hidden else "classes", length, out.shape[-1])
    return known[shapes]


_SHAPES: WeakKeyDictionary[TwinBridge, dict[tuple[tuple[str, torch.Size], ...], OutputShape]] = WeakKeyDictionary()
