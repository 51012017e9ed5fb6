"""The circuit of a neuron: which tokens open its gate, which its value carries, and what it says to the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from allheads.banks.bank import HeadBank
from allheads.errors import AllHeadsError
from allheads.weights.vocabulary import TokenValue, Vocabulary

if TYPE_CHECKING:
    import pandas


_SIDES = ("opens", "closes", "raises", "lowers", "promotes", "suppresses")


@dataclass(frozen=True)
class NeuronCircuit:
    """A neuron through the embeddings, k tokens a side, the strongest first.

    ``opens`` and ``closes``: preactivation of its gate, with its bias, if the stream were the token's embedding.
    ``raises`` and ``lowers``: the same for the value of a gated neuron; empty for a plain one, whose value reads what
    its gate reads. ``promotes`` and ``suppresses``: logits, less their mean over the vocabulary, per unit of activation
    and of the final norm's scale.
    """

    label: str
    opens: list[TokenValue]
    closes: list[TokenValue]
    raises: list[TokenValue]
    lowers: list[TokenValue]
    promotes: list[TokenValue]
    suppresses: list[TokenValue]

    def to_dataframe(self) -> pandas.DataFrame:
        """Columns: side, token, text, value."""
        import pandas

        rows = [(side, each.token, each.text, each.value) for side in _SIDES for each in getattr(self, side)]
        return pandas.DataFrame(rows, columns=["side", "token", "text", "value"])

    def __str__(self) -> str:
        found = {side: " ".join(repr(each.text) for each in getattr(self, side)) for side in _SIDES}
        return "\n".join([self.label, *(f"{side:>10}: {texts}" for side, texts in found.items() if texts)])


def neuron_circuit(vocabulary: Vocabulary, label: str, layer: int, neuron: int, k: int) -> NeuronCircuit:
    """Read neuron ``neuron`` of a layer. Raises `AllHeadsError` if its heads were edited."""
    bank: HeadBank = vocabulary.twin.banks[layer]
    if bank.own is not None:
        raise AllHeadsError("a neuron whose heads share its weights", f"edited heads in L{layer}", "Read it before.")
    weights, sublayer = bank.weights().only(neuron), vocabulary.wiring.neurons[layer]
    query = vocabulary.read(sublayer, weights.W_Q[0].detach().T, None if weights.b_Q is None else weights.b_Q[0])[:, 0]
    raises, lowers = [], []
    if weights.W_V is not None:
        b_V = None if weights.b_V is None else weights.b_V[0]
        value = vocabulary.read(sublayer, weights.W_V[0].detach().T, b_V)[:, 0]
        raises, lowers = vocabulary.most(value, k), vocabulary.most(value, k, least=True)
    logits = vocabulary.logits(sublayer, weights.W_O[0].detach())[0]
    return NeuronCircuit(
        label,
        opens=vocabulary.most(query, k),
        closes=vocabulary.most(query, k, least=True),
        raises=raises,
        lowers=lowers,
        promotes=vocabulary.most(logits, k),
        suppresses=vocabulary.most(logits, k, least=True),
    )
