"""The circuit of a neuron: which tokens open its gate, which its value carries, and what it says to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from allheads.errors import AllHeadsError
from allheads.result import Result
from allheads.twin.wiring import ResidualBranch, Wiring
from allheads.weights.vocabulary import TokenValue, extreme_tokens, read_tokens, write_logits

if TYPE_CHECKING:
    import pandas

#: The sides of a neuron, in their order.
SIDES = ("opens", "closes", "raises", "lowers", "promotes", "suppresses")


@dataclass(frozen=True, repr=False)
class NeuronCircuit(Result):
    """A neuron through the embeddings, k tokens a side, the strongest first.

    ``opens`` and ``closes``: preactivation of its gate, with its bias, if the stream were the token's embedding.
    ``raises`` and ``lowers``: the same for the value of a gated neuron; empty for a plain one, whose value reads what
    its gate reads. ``promotes`` and ``suppresses``: logits, less their mean over the vocabulary, per unit of activation
    and of the final norm's scale. Both of the first are empty where the stream does not begin with tokens, the last
    where it does not end in logits; ``unread`` then says so.

    >>> import allheads as ah
    >>> circuit = ah.weights.circuit(twin, "L3.N812", k=3)
    >>> [len(side) for side in (circuit.opens, circuit.raises, circuit.promotes)]
    [3, 3, 3]
    """

    label: str
    opens: list[TokenValue]
    closes: list[TokenValue]
    raises: list[TokenValue]
    lowers: list[TokenValue]
    promotes: list[TokenValue]
    suppresses: list[TokenValue]
    #: Why sides are empty: an end of the stream that is not tokens.
    unread: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Which neuron it is, and what of it cannot be read."""
        return {"label": self.label, "unread": list(self.unread)}

    def to_dataframe(self) -> pandas.DataFrame:
        """Columns: side, token, id, value."""
        import pandas

        rows = [(side, token.text, token.token, token.value) for side in SIDES for token in getattr(self, side)]
        return pandas.DataFrame(rows, columns=["side", "token", "id", "value"])

    def preview(self) -> pandas.DataFrame:
        """The strongest tokens of every side."""
        return self.to_dataframe().groupby("side", sort=False).head(1)

    def __str__(self) -> str:
        texts = {side: " ".join(repr(token.text) for token in getattr(self, side)) for side in SIDES}
        lines = (f"{side:>10}: {text}" for side, text in texts.items() if text)
        return "\n".join([self.label, *lines, *self.unread])


def neuron_circuits(wiring: Wiring, branch: ResidualBranch, neurons: Sequence[int], k: int) -> list[NeuronCircuit]:
    """Read these neurons of a sublayer together.

    Raises `AllHeadsError` if its heads were edited, and where neither end of its stream is tokens.
    """
    bank = branch.bank
    assert bank is not None
    bank.require_shared("a neuron whose heads share its weights", branch.name)
    weights, some, unread = bank.weights(), list(neurons), []
    none: list[list[TokenValue]] = [[] for _ in some]
    opens, raises, promotes = (none, none), (none, none), (none, none)
    read = [(weights.W_Q, weights.b_Q), *([] if weights.W_V is None else [(weights.W_V, weights.b_V)])]
    try:
        # Both sides at once: all embeddings pass the norm, which takes longer than reading them.
        both = torch.cat([W[0, some].detach() for W, _ in read])
        values = read_tokens(wiring, branch, lambda x: x @ both.T.to(x)).T.split(len(some))
        biased = [
            value if b is None else value + b[0, some].detach().to(value)[:, None]
            for value, (_, b) in zip(values, read, strict=True)
        ]
        opens, raises = ([extreme_tokens(wiring.twin, side, k) for side in biased] + [raises])[:2]
    except AllHeadsError as error:
        unread.append(error)
    try:
        promotes = extreme_tokens(wiring.twin, write_logits(wiring, branch, weights.W_O[0, some].detach()), k)
    except AllHeadsError as error:
        unread.append(error)
    if len(unread) == 2:
        raise unread[0]
    reasons = tuple(map(str, unread))
    return [
        NeuronCircuit(str(branch.site.label(neuron)), opened, closed, raised, lowered, promoted, suppressed, reasons)
        for neuron, opened, closed, raised, lowered, promoted, suppressed in zip(
            some, *opens, *raises, *promotes, strict=True
        )
    ]
