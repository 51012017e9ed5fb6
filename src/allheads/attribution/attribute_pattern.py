"""attribute_pattern: why a head attends, or a gate opens, split over everything that was written before.

A neuron's preactivation is linear in the stream, with norm scales frozen: ``t = w . norm(x) + b``. The score of an
ordinary head, as it enters the softmax, is ``q . k`` with a scale: linear in the stream at the destination with the key
frozen, and linear in the stream at the source with the query frozen, however both are turned and normalised before.
Each side sums to the whole score; neither says what it would be without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribute import answer
from allheads.attribution.attribution import Attribution
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable, live
from allheads.attribution.metric import NOTHING, Metric
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, Rule, rule_named
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.models.locations import Location
from allheads.models.observe import Inputs
from allheads.result import SHOWN, Result, finite
from allheads.twin.capture import capturing
from allheads.twin.heads import Head
from allheads.twin.labels import Label
from allheads.twin.prompt import Texts, one_prompt, position_in
from allheads.twin.sites import sites
from allheads.twin.softmax import PATTERN, SCORES, scores_shown
from allheads.twin.twin import TwinBridge, require_twin

if TYPE_CHECKING:
    import pandas

#: The stack that heads of a decoder attend to.
_ENCODER = "encoder_blocks"


@dataclass(frozen=True, repr=False)
class PatternAttribution(Result):
    """What makes a head attend: ``query`` splits its score over what the destination has read, ``key`` over the source.

    A neuron attends to its own token where its preactivation is large: ``query`` splits that, and there is no ``key``.
    ``pattern`` is what the softmax makes of it: one number, or one for each head of a neuron. Scores are in units of
    the softmax's input, logs of odds.
    """

    label: str
    position: int
    source: int
    #: The position whose score is subtracted, where two are compared.
    versus_source: int | None
    score: float
    pattern: Float[Tensor, " head"]
    query: Attribution
    key: Attribution | None = None
    #: Compared with another source, the key side of the score there.
    key_versus: Attribution | None = None

    @property
    def sides(self) -> dict[str, Attribution]:
        """Query, key and what the key is compared with, as far as there are."""
        sides = {"query": self.query, "key": self.key, "key_versus": self.key_versus}
        return {name: side for name, side in sides.items() if side is not None}

    def facts(self) -> dict[str, Any]:
        """The head, from where and to where it attends, its score and pattern."""
        return {
            "label": self.label,
            "position": self.position,
            "source": self.source,
            "versus_source": self.versus_source,
            "score": self.score,
            "pattern": self.pattern.tolist(),
            "rule": self.query.rule.name,
        }

    def to_dataframe(self, k: int | None = None) -> pandas.DataFrame:
        """Heads and neurons of every side, as `Attribution.to_dataframe`, with a first column: side."""
        import pandas

        tables = [side.to_dataframe(k).assign(side=name) for name, side in self.sides.items()]
        table = pandas.concat(tables, ignore_index=True)
        return table[["side", *table.columns[:-1]]]

    def to_dict(self) -> dict[str, Any]:
        """Facts, and every side as `Attribution.to_dict`."""
        return finite(self.facts() | {name: side.to_dict() for name, side in self.sides.items()})

    def preview(self) -> pandas.DataFrame:
        """The largest contributions to each side."""
        return self.to_dataframe(SHOWN // len(self.sides))

    def relative_to(self, means: Means) -> PatternAttribution:
        """The same, with embeddings, heads and neurons less their means; see `Attribution.relative_to`."""
        return replace(
            self,
            query=self.query.relative_to(means),
            key=self.key and self.key.relative_to(means),
            key_versus=self.key_versus and self.key_versus.relative_to(means),
        )


def attribute_pattern(
    twin: TwinBridge,
    tokens: Texts | Inputs,
    head: str,
    source: int | tuple[int | None, int] | None = None,
    *,
    rule: str | Rule = DEFAULT,
) -> PatternAttribution:
    r"""Which tokens, heads and neurons make a head attend.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        head: an ordinary head (``L3.A5``), a neuron or one of its heads (``L3.N812``), and the destination, from where
            it attends: ``L3.A5@7``, as nodes of a graph are named; the last position if it is left out.
        source: which position it attends to; where its pattern is largest if None. A pair compares the scores of two
            sources: a pattern answers to differences. Neurons attend to their own token.
        rule: for everything before, as in `ah.attribute`; one that freezes everything.

    Returns:
        A `PatternAttribution`: ``query.total`` is the score, ``key.total`` too, within rounding, and so is every cut up
        to the layer. What is not linear in the stream (a bias for distance, a cap) is the ``intercept``.

    Raises:
        AllHeadsError: an unknown label, a position outside the prompt, a source that cannot be seen, a rule that does
            not freeze everything, edited heads, or a pattern that is not made by a softmax of queries and keys.

    >>> why = attribute_pattern(twin, "Mary and John", "L3.N812")
    >>> abs(why.query.total - why.score) < 1e-5, why.key is None
    (True, True)
    """
    name, _, at = head.partition("@")
    if at and not at.lstrip("-").isdigit():
        raise AllHeadsError("a head and a position, such as L3.A5@7", repr(head), "Leave out @ for the last position.")
    question = Question(require_twin(twin), one_prompt(twin, tokens), NOTHING, rule_named(rule))
    if not question.rule.complete:
        raise AllHeadsError("a rule that freezes everything", repr(question.rule.name), "Use value, gate or half.")
    heads = twin.index.heads(name)
    of_neuron = heads[0].of_neuron
    if of_neuron and source is not None:
        raise AllHeadsError("a neuron without a source", f"{source}", "It attends to its own token.")
    with live(twin):
        position = int(at) if at else -1
        if of_neuron:
            return _of_neuron(question, str(Label.parse(name)), heads, position)
        return _of_head(question, heads[0], position, source)


def _of_neuron(question: Question, name: str, heads: list[Head], position: int) -> PatternAttribution:
    label, prefix = heads[0].label, heads[0].hook_prefix
    heads[0].module.require_shared("a neuron whose heads share its preactivation", label.stem, "Ask before the edit.")
    point, gate = f"{prefix}hook_pre", f"{prefix}hook_pattern_self"
    seen = _seen(question, [gate])[gate]
    at = position_in(seen.shape[2], position)

    def preactivation(logits: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        return activations[point][0, at, label.index]

    stream = _read_by_neurons(question.twin, heads[0])
    result = answer(question.about(Metric(f"preactivation of {name}", at, preactivation, stream, (point, stream))))
    gates = seen[0, [head.number for head in heads], at]
    return PatternAttribution(name, at, at, None, result.target_value, gates, result)


def _of_head(
    question: Question, head: Head, position: int, source: int | tuple[int | None, int] | None
) -> PatternAttribution:
    twin, here = question.twin, question.twin.index.location(head.label)
    scores, pattern_point, *sides = (f"{head.hook_prefix}{name}" for name in (SCORES, PATTERN, "hook_q", "hook_k"))
    pattern = _seen(question, [pattern_point, scores, *sides])[pattern_point][0, head.number]
    at, length = position_in(len(pattern), position), pattern.shape[1]
    pattern, points = pattern[at], dict(zip("qk", sides, strict=True))
    # Heads that attend to an encoder read its end.
    streams = {"q": _stream(here), "k": _stream(here) if head.label.kind == "A" else _encoder_end(twin)}
    first, second = source if isinstance(source, tuple) else (source, None)
    to = int(pattern.argmax()) if first is None else position_in(length, first)
    other = None if second is None else position_in(length, second)
    if to == other or any(pattern[position] == 0.0 for position in (to, other) if position is not None):
        raise AllHeadsError(f"different sources that {head} sees from {at}", f"{to} and {other}", "Name others.")
    name = f"score of {head} from {at} to {to}" + ("" if other is None else f", less that to {other}")

    def score(logits: Tensor, activations: Mapping[str, Tensor], plus: int = to, minus: int | None = other) -> Tensor:
        row = activations[scores][0, head.number, at]
        return row[plus] if minus is None else row[plus] - row[minus]

    def side(letter: str, where: int, plus: int, minus: int | None) -> Attribution:
        function = partial(score, plus=plus, minus=minus)
        metric = Metric(f"{name}: {letter}", where, function, streams[letter], (scores, *sides))
        return answer(question.about(metric, unfrozen=(points[letter],)))

    _require_sides(question.about(Metric(name, at, score, hook_points=(scores, *sides))))
    query, key = side("q", at, to, other), side("k", to, to, None)
    key_versus = None if other is None else side("k", other, other, None)
    weight = pattern[to : to + 1]
    return PatternAttribution(str(head), at, to, other, query.target_value, weight, query, key, key_versus)


def _require_sides(question: Question) -> None:
    """Raises `AllHeadsError` where a score answers to the prompt with both of its sides, queries and keys, held."""
    with differentiable(question):
        cache = ForwardCache(question.twin, question.metric.hook_points)
        with cache.recording():
            value = question.metric.of(question.run(), cache.activations)
        leaves = list(cache.embeddings.values())
        found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else ()
    if any(gradient is not None and bool(gradient.any()) for gradient in found):
        raise AllHeadsError(
            f"scores made of what passes {' and '.join(question.metric.hook_points[1:])}",
            f"a {question.metric.name} that more goes into",
            "Its query and its key cannot be told apart.",
        )


def _stream(location: Location) -> str:
    """The stream that a sublayer reads."""
    return f"{location.stack}.{location.layer}.hook_resid_pre"


def _read_by_neurons(twin: TwinBridge, head: Head) -> str:
    """The stream before a neuron's layer; where there are several stacks, what its projection reads."""
    if len({site.stack for site in sites(twin)}) == 1:
        return _stream(twin.index.location(head.label))
    point, known = head.module.hooks.hook_query_in, twin.hook_dict
    return next((name for name in known if known[name] is point), f"{head.hook_prefix}hook_in")


def _encoder_end(twin: TwinBridge) -> str:
    """The stream at the end of an encoder."""
    last = max(layer.location.layer for layer in twin.index.attention.values() if layer.location.stack == _ENCODER)
    return f"{_ENCODER}.{last}.hook_resid_post"


def _seen(question: Question, names: Sequence[str]) -> dict[str, Tensor]:
    """What passes these hook points on the prompt, without gradients. Raises `AllHeadsError` for one that is silent."""
    twin, points = question.twin, [name for name in names if not name.endswith(SCORES)]
    with torch.no_grad(), capturing(twin, points) as activations, scores_shown(twin, names, activations):
        question.run()
    silent = [name for name in names if name not in activations]
    if silent and silent[0].endswith((PATTERN, SCORES)):
        shown = silent[0].removesuffix(SCORES).removesuffix(PATTERN) + PATTERN
        other = "something else" if shown in activations else "none: they attend within windows, or run by a kernel"
        raise AllHeadsError(
            f"a pattern at {shown} that a softmax has given",
            f"heads of {twin.cfg.architecture} that show {other}",
            "ah.attribute reads what they write.",
        )
    if silent:
        raise AllHeadsError(
            f"a prompt on which something passes {silent[0]}", "one on which nothing does", "Name a part that runs."
        )
    return activations
