"""What was asked: the twin, the prompt, the metric and the rule, kept inside every result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxtyping import Int
from torch import Tensor

from allheads.attribution.metric import Metric, Target, metric_of
from allheads.attribution.rules import Rule, rule_named
from allheads.twin.prompt import Texts, prompt_ids, token_texts
from allheads.twin.twin import TwinBridge


@dataclass(frozen=True, eq=False)
class Question:
    """Why is ``metric`` what it is, on these ``ids``, in this twin, under this rule?

    ``unfrozen`` are hook points of queries or keys that keep their gradient whatever the rule holds fixed.
    """

    twin: TwinBridge = field(repr=False)
    ids: Int[Tensor, "1 pos"]
    metric: Metric
    rule: Rule
    unfrozen: tuple[str, ...] = ()

    @classmethod
    def of(cls, twin: TwinBridge, tokens: Texts, target: Target, rule: str | Rule, position: int) -> Question:
        """A question as users ask it. Raises `AllHeadsError` for a prompt, target, rule or position that is none."""
        chosen, ids = rule_named(rule), prompt_ids(twin, tokens)
        return cls(twin, ids, metric_of(twin, target, position, ids.shape[1]), chosen)

    @property
    def tokens(self) -> list[str]:
        """What the tokens of the prompt say."""
        return token_texts(self.twin, self.ids)

    def about(self, metric: Metric, unfrozen: tuple[str, ...] = ()) -> Question:
        """The same question about another metric."""
        return replace(self, metric=metric, unfrozen=unfrozen)
