"""similarity: which tokens, heads and neurons make two sentences similar, in a model of sentence embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribute import answer
from allheads.attribution.attribution import Attribution
from allheads.attribution.metric import NOTHING, Metric
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, Rule, rule_named
from allheads.errors import AllHeadsError
from allheads.models.observe import output_kind
from allheads.result import SHOWN, Result, finite
from allheads.twin.prompt import Texts, one_prompt
from allheads.twin.twin import TwinBridge, require_twin

if TYPE_CHECKING:
    import pandas

#: How a sentence's embedding comes from its tokens': their mean, or the first.
Pooling = Literal["mean", "first"]


@dataclass(frozen=True, repr=False)
class Similarity(Result):
    """The cosine of two sentences, and what makes it, seen from either side.

    ``first`` splits it over the parts of the first sentence, with the embedding of the second held, ``second`` the
    other way round; both sum to ``cosine``. Biases of the network are among the ``constants`` of each: what any two
    sentences have in common.
    """

    cosine: float
    first: Attribution
    second: Attribution

    def facts(self) -> dict[str, Any]:
        """The cosine, and what the first sentence's parts sum to; so do the second's."""
        return {"cosine": self.cosine, "total": self.first.total, "rule": self.first.rule.name}

    def to_dataframe(self, k: int | None = None) -> pandas.DataFrame:
        """Heads and neurons of both sides, as `Attribution.to_dataframe`, with a first column: sentence."""
        import pandas

        sides = {"first": self.first, "second": self.second}
        tables = [side.to_dataframe(k).assign(sentence=name) for name, side in sides.items()]
        table = pandas.concat(tables, ignore_index=True)
        return table[["sentence", *table.columns[:-1]]]

    def to_dict(self) -> dict[str, Any]:
        """Facts, and both sides as `Attribution.to_dict`."""
        return finite(self.facts() | {"first": self.first.to_dict(), "second": self.second.to_dict()})

    def preview(self) -> pandas.DataFrame:
        """The largest contributions of either side."""
        return self.to_dataframe(SHOWN // 2)


def similarity(
    twin: TwinBridge, first: Texts, second: Texts, *, rule: str | Rule = DEFAULT, pooling: Pooling = "mean"
) -> Similarity:
    r"""Why two sentences are similar to a model of sentence embeddings.

    With a, b the embeddings, ``cos = a . b / (|a| |b|)``. For the parts of the first sentence, b and both lengths are
    held: ``cos = g . a`` with ``g = b / (|a| |b|)``, linear in a; and the other way round.

    Args:
        twin: of an encoder without a head.
        first: a sentence, or its ids.
        second: another.
        rule: as in `ah.attribute`.
        pooling: ``mean`` of the last hidden state over all tokens, as most sentence encoders do, or that of the
            ``first``.

    Raises:
        AllHeadsError: a model that has a head, and as `ah.attribute`.

    >>> import allheads as ah
    >>> twin = ah.convert(ah.load("all-minilm-l6-v2"))
    >>> found = ah.similarity(twin, "A cat sits outside.", "Outside, there is a kitten.")
    >>> round(found.cosine, 2), abs(found.first.total - found.cosine) < 1e-4
    (0.67, True)
    """
    if output_kind(require_twin(twin)) != "last hidden state":
        raise AllHeadsError(
            "an encoder that gives its last hidden state",
            f"{twin.cfg.architecture}, which has a head",
            'Try ah.load("all-minilm-l6-v2").',
        )
    if pooling not in ("mean", "first"):
        raise AllHeadsError("pooling='mean' or 'first'", repr(pooling), "See the model's own description.")
    asked = [Question(twin, one_prompt(twin, text), NOTHING, rule_named(rule)) for text in (first, second)]
    with torch.no_grad():
        embeddings = [_pooled(question.run(), pooling) for question in asked]
    sides = []
    for question, mine, other in zip(asked, embeddings, embeddings[::-1], strict=True):
        direction = other / (mine.norm() * other.norm())
        sides.append(answer(question.about(_along(direction, pooling))))
    return Similarity(sides[0].target_value, *sides)


def _pooled(outputs: Float[Tensor, "1 pos d_model"], pooling: Pooling) -> Float[Tensor, " d_model"]:
    return outputs[0].mean(0) if pooling == "mean" else outputs[0, 0]


def _along(direction: Float[Tensor, " d_model"], pooling: Pooling) -> Metric:
    def cosine(outputs: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return _pooled(outputs, pooling) @ direction

    return Metric("cosine", 0, cosine)
