"""attribute_pattern: why a head attends, or a gate opens, split over everything that was written before.

A neuron's preactivation is linear in the stream, with norm scales held: ``t = w . norm(x) + b``. The score of an
ordinary head is ``q . k / sqrt(d_head)``: linear in the stream at the destination with the key held, and linear in the
stream at the source with the query held. Each side sums to the whole score; neither says what it would be without the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribute import contributions
from allheads.attribution.attribution import Attribution
from allheads.attribution.metrics import position_in, token_ids
from allheads.attribution.rules import DEFAULT, Rule, rule_named
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.twin.heads import Head
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge, require_twin


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
    key: Attribution | None
    #: With ``versus``, the key side of the score there.
    key_versus: Attribution | None


@dataclass(frozen=True)
class Read:
    """A number inside a layer, made of what passes some hook points."""

    name: str
    position: int
    layer: int
    watched: tuple[str, ...]
    value: Callable[[Mapping[str, Tensor]], Tensor]

    def of(self, logits: Tensor, seen: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Its value."""
        return self.value(seen)


def attribute_pattern(
    twin: TwinBridge,
    tokens: str | Tensor,
    label: str,
    position: int,
    *,
    source: int | None = None,
    versus: int | None = None,
    rule: str | Rule = DEFAULT,
    baseline: Means | None = None,
) -> PatternAttribution:
    r"""Which tokens, heads and neurons make a head attend.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        label: an ordinary head (``L3.A5``), a neuron or one of its heads (``L3.N812``).
        position: the destination: where it attends from.
        source: which position it attends to; where its pattern is largest if None. Neurons attend to their own token.
        versus: compare with the score of this source: a pattern answers to differences.
        rule: for everything before, as in `ah.attribute`; one that holds everything.
        baseline: from `ah.corpus.means`.

    Returns:
        A `PatternAttribution`: ``query.total`` is the score, ``key.total`` too, within rounding, and so is every cut up
        to the layer. What is not linear in the stream (a bias for distance, a cap) is the ``intercept``.

    Raises:
        AllHeadsError: an unknown label, a position outside the prompt, a source that cannot be seen, a rule that does
            not hold everything, or edited heads.

    >>> why = attribute_pattern(twin, "Mary and John", "L3.N812", -1)  # doctest: +SKIP
    >>> why.query.top(3)  # doctest: +SKIP
    """
    chosen = rule_named(rule)
    if not chosen.complete:
        raise AllHeadsError("a rule that holds everything", repr(chosen.name), "Use frozen, gate or half.")
    ids = token_ids(twin, tokens)
    found = require_twin(twin).index.heads(label)
    at = position_in(ids.shape[1], position)
    if found[0].label.kind == "N":
        if source is not None or versus is not None:
            raise AllHeadsError("a neuron without source and versus", f"{source}, {versus}", "It attends to its token.")
        return _of_neuron(twin, ids, str(Label.parse(label)), found, at, chosen, baseline)
    return _of_head(twin, ids, found[0], at, chosen, baseline, source, versus)


def _of_neuron(
    twin: TwinBridge, ids: Tensor, name: str, parts: list[Head], at: int, rule: Rule, baseline: Means | None
) -> PatternAttribution:
    label = parts[0].label
    point = f"{parts[0].hook_prefix}hook_pre"
    read = Read(f"preactivation of {name}", at, label.layer, (point,), lambda seen: seen[point][0, at, label.index])
    result = contributions(twin, ids, read, rule, baseline=baseline)
    gate = f"{parts[0].hook_prefix}hook_pattern_self"
    gates = _seen(twin, ids, gate)[gate][0, [part.number for part in parts], at]
    return PatternAttribution(name, at, at, None, result.target_value, gates, result, None, None)


def _of_head(
    twin: TwinBridge,
    ids: Tensor,
    which: Head,
    at: int,
    rule: Rule,
    baseline: Means | None,
    source: int | None,
    versus: int | None,
) -> PatternAttribution:
    points = tuple(f"{which.hook_prefix}hook_{name}" for name in ("pattern", "attn_scores", "q", "k"))
    seen = _seen(twin, ids, *points)
    pattern = seen[points[0]][0, which.number, at]
    scores = _scores_of(which, seen, points, at, pattern, twin.cfg.architecture)
    to = int(pattern.argmax()) if source is None else position_in(ids.shape[1], source)
    other = None if versus is None else position_in(ids.shape[1], versus)
    if to == other or any(pattern[each] == 0.0 for each in (to, other) if each is not None):
        raise AllHeadsError(f"different sources that {which} sees from {at}", f"{to} and {other}", "Name others.")
    name = f"score of {which} from {at} to {to}" + ("" if other is None else f", less that to {other}")

    def side(letter: str, where: int, first: int, second: int | None) -> Attribution:
        def value(seen: Mapping[str, Tensor]) -> Tensor:
            row = scores(seen)
            return row[first] if second is None else row[first] - row[second]

        read = Read(f"{name}: {letter}", where, which.label.layer, points[1:], value)
        moving = [f"{which.hook_prefix}hook_{letter}"]
        return contributions(twin, ids, read, rule, baseline=baseline, moving=moving)

    query = side("q", at, to, other)
    key, key_versus = side("k", to, to, None), None if other is None else side("k", other, other, None)
    gate = pattern[to : to + 1]
    return PatternAttribution(str(which), at, to, other, query.target_value, gate, query, key, key_versus)


def _scores_of(
    which: Head, seen: Mapping[str, Tensor], points: tuple[str, ...], at: int, pattern: Tensor, architecture: str | None
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """How a head's scores are read: shown as such, or the product of queries and keys, whichever makes its pattern."""
    _, shown, q, k = points

    def product(seen: Mapping[str, Tensor]) -> Tensor:
        keys = seen[k][0]
        group = which.number * keys.shape[1] // seen[q].shape[2]
        return keys[:, group] @ seen[q][0, at, which.number] / keys.shape[-1] ** 0.5

    visible = pattern > 0
    for scores in (lambda seen: seen[shown][0, which.number, at], product):
        row = scores(seen).detach()
        if torch.allclose(row[visible].softmax(0), pattern[visible], atol=1e-4):
            return scores
    raise AllHeadsError(
        f"a head whose scores are shown at {shown}", str(architecture), "Its pattern has another cause."
    )


def _seen(twin: TwinBridge, ids: Tensor, *names: str) -> Mapping[str, Tensor]:
    missing = [name for name in names if name not in twin.hook_dict]
    if missing:
        raise AllHeadsError("a head that shows queries, keys and scores", f"none at {missing[0]}", "Choose another.")
    with torch.no_grad():
        return twin.run_with_cache(ids, names_filter=list(names))[1].cache_dict
