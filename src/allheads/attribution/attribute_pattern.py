"""attribute_pattern: why a head attends, or a gate opens, split over everything that was written before.

A neuron's preactivation is linear in the stream, with norm scales frozen: ``t = w . norm(x) + b``. The score of an
ordinary head is ``q . k / sqrt(d_head)``: linear in the stream at the destination with the key frozen, and linear in
the stream at the source with the query frozen. Each side sums to the whole score; neither says what it would be without
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribute import answer
from allheads.attribution.attribution import Attribution
from allheads.attribution.freezing import live
from allheads.attribution.metric import NOTHING, Metric
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, Rule
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.twin.capture import captured
from allheads.twin.heads import Head
from allheads.twin.labels import Label
from allheads.twin.prompt import Texts, position_in
from allheads.twin.twin import TwinBridge


@dataclass(frozen=True)
class PatternAttribution:
    """What makes a head attend: ``query`` splits its score over what the destination has read, ``key`` over the source.

    A neuron attends to its own token where its preactivation is large: ``query`` splits that, and there is no ``key``.
    ``pattern`` is what the softmax makes of it: one number, or one for each head of a neuron. Scores are in units of
    the softmax's input, logs of odds.
    """

    label: str
    position: int
    source: int
    versus: int | None
    score: float
    pattern: Float[Tensor, " head"]
    query: Attribution
    key: Attribution | None = None
    #: Compared with another source, the key side of the score there.
    key_versus: Attribution | None = None

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
    tokens: Texts,
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
            not freeze everything, or edited heads.

    >>> why = attribute_pattern(twin, "Mary and John", "L3.N812")  # doctest: +SKIP
    >>> why.query.top(3)  # doctest: +SKIP
    """
    name, _, at = head.partition("@")
    if at and not at.lstrip("-").isdigit():
        raise AllHeadsError("a head and a position, such as L3.A5@7", repr(head), "Leave out @ for the last position.")
    question = Question.of(twin, tokens, NOTHING, rule, int(at) if at else -1)
    if not question.rule.complete:
        raise AllHeadsError("a rule that freezes everything", repr(question.rule.name), "Use value, gate or half.")
    heads = twin.index.heads(name)
    of_neuron = heads[0].of_neuron
    if of_neuron and source is not None:
        raise AllHeadsError("a neuron without a source", f"{source}", "It attends to its own token.")
    with live(twin):
        return _of_neuron(question, name, heads) if of_neuron else _of_head(question, heads[0], source)


def _of_neuron(question: Question, name: str, heads: list[Head]) -> PatternAttribution:
    label, prefix, at = heads[0].label, heads[0].hook_prefix, question.metric.position
    point, gate = f"{prefix}hook_pre", f"{prefix}hook_pattern_self"

    def preactivation(logits: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        return activations[point][0, at, label.index]

    result = answer(question.about(Metric(f"preactivation of {name}", at, preactivation, label.layer, (point,))))
    gates = captured(question.twin, question.ids, [gate])[gate][0, [head.number for head in heads], at]
    return PatternAttribution(str(Label.parse(name)), at, at, None, result.target_value, gates, result)


def _of_head(question: Question, head: Head, source: int | tuple[int | None, int] | None) -> PatternAttribution:
    at, length = question.metric.position, question.ids.shape[1]
    points = {name: f"{head.hook_prefix}hook_{name}" for name in ("pattern", "attn_scores", "q", "k")}
    activations = captured(question.twin, question.ids, points.values())
    pattern = activations[points["pattern"]][0, head.number, at]
    scores = _scores_of(question, head, activations)
    first, second = source if isinstance(source, tuple) else (source, None)
    to = int(pattern.argmax()) if first is None else position_in(length, first)
    other = None if second is None else position_in(length, second)
    if to == other or any(pattern[position] == 0.0 for position in (to, other) if position is not None):
        raise AllHeadsError(f"different sources that {head} sees from {at}", f"{to} and {other}", "Name others.")
    name = f"score of {head} from {at} to {to}" + ("" if other is None else f", less that to {other}")

    def side(letter: str, where: int, plus: int, minus: int | None) -> Attribution:
        def score(logits: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
            row = scores(activations)
            return row[plus] if minus is None else row[plus] - row[minus]

        shown = tuple(points[name] for name in ("attn_scores", "q", "k") if points[name] in activations)
        metric = Metric(f"{name}: {letter}", where, score, head.label.layer, shown)
        return answer(question.about(metric, unfrozen=(points[letter],)))

    query, key = side("q", at, to, other), side("k", to, to, None)
    key_versus = None if other is None else side("k", other, other, None)
    weight = pattern[to : to + 1]
    return PatternAttribution(str(head), at, to, other, query.target_value, weight, query, key, key_versus)


def _scores_of(
    question: Question, head: Head, activations: Mapping[str, Tensor]
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """How a head's scores are read: shown as such, or the product of queries and keys, whichever makes its pattern."""
    at = question.metric.position
    shown, q, k = (f"{head.hook_prefix}hook_{name}" for name in ("attn_scores", "q", "k"))

    def as_shown(activations: Mapping[str, Tensor]) -> Tensor:
        return activations[shown][0, head.number, at]

    def as_product(activations: Mapping[str, Tensor]) -> Tensor:
        keys = activations[k][0]
        group = head.number * keys.shape[1] // activations[q].shape[2]
        return keys[:, group] @ activations[q][0, at, head.number] / keys.shape[-1] ** 0.5

    pattern = activations[f"{head.hook_prefix}hook_pattern"][0, head.number, at]
    visible = pattern > 0
    for scores in (as_shown, as_product):
        row = scores(activations).detach().to(pattern)
        if torch.allclose(row[visible].softmax(0), pattern[visible], atol=1e-4):
            return scores
    raise AllHeadsError(
        f"a head whose scores are shown at {shown}",
        str(question.twin.cfg.architecture),
        "Its pattern has another cause.",
    )
