"""Linearisations by name: what is frozen at its value, and who gets the credit of a product.

A transformer is not linear, and every attribution by one backward pass says, openly or not, what it freezes. Under
a rule that freezes norm scales, attention patterns and gates, the twin is a linear map from embeddings to logits, up to
constants: contributions then sum to the logit without a remainder, for whatever share of credit. That does not make
them unique, and what is frozen gets no credit.
"""

from __future__ import annotations

from dataclasses import dataclass

from allheads.errors import AllHeadsError


@dataclass(frozen=True)
class Rule:
    """A named linearisation.

    ``norms``, ``patterns`` and ``gates`` are frozen at their values if True. Of a gated neuron's product ``f(g) u``,
    with its gate frozen, the fraction ``gate_share`` goes to what made g and the rest to what made u.

    >>> Rule("mine", True, True, True, 0.25, "A quarter to the gate?", "Patterns.").complete
    True
    """

    name: str
    norms: bool
    patterns: bool
    gates: bool
    gate_share: float
    answers: str
    misses: str

    @property
    def complete(self) -> bool:
        """Is the network linear under this rule, so that contributions sum to the whole?"""
        return self.norms and self.patterns and self.gates


_RULES = (
    Rule(
        "value",
        True,
        True,
        True,
        0.0,
        "What was carried to the logits, along the patterns and through the gates as they were?",
        "Why heads attended and gates opened: no credit through Q, K or a gate's preactivation.",
    ),
    Rule(
        "gate",
        True,
        True,
        True,
        1.0,
        "What opened the gates that let the logit through?",
        "What the gated neurons were given to pass on; and patterns, as under value.",
    ),
    Rule(
        "half",
        True,
        True,
        True,
        0.5,
        "Both at once: a gated neuron is a product, and each factor gets half of it.",
        "Patterns, as under value. Halves are a convention: nothing singles them out.",
    ),
    Rule(
        "live",
        True,
        False,
        True,
        0.0,
        "What carried and what steered: gradients flow through the attention scores as well.",
        "The sum: attention is counted more than once. Gates get no credit.",
    ),
    Rule(
        "relp",
        True,
        False,
        True,
        0.5,
        "The same with half the credit of a gated neuron to its gate; linearised like relevance propagation.",
        "The sum, as under live.",
    ),
    Rule(
        "gradient",
        False,
        False,
        False,
        0.0,
        "What would a small change do? Gradient times activation, with nothing frozen.",
        "The sum, and large changes: shut gates and saturated softmaxes have no gradient.",
    ),
)
#: All rules by name.
RULES = {rule.name: rule for rule in _RULES}
#: What is used unless another is named: complete, and first or level with the first by sign in docs/faithfulness.md.
DEFAULT = "half"


def rule_named(rule: str | Rule) -> Rule:
    """A rule by name; a rule of one's own passes.

    Raises `AllHeadsError` for an unknown name, and for a share outside [0, 1].

    >>> rule_named("half").gate_share, rule_named("half").complete, rule_named("relp").complete
    (0.5, True, False)
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise AllHeadsError(f"a rule out of {', '.join(RULES)}", repr(rule), f"The default is {DEFAULT}.")
        return RULES[rule]
    if not isinstance(rule, Rule) or not 0.0 <= rule.gate_share <= 1.0:
        raise AllHeadsError("a rule, by name or a Rule with a share in [0, 1]", repr(rule), "Try rule='value'.")
    return rule
