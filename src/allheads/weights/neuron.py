"""The circuit of a neuron: which tokens open its gate, which its value carries, and what it says to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from allheads.heads.bank import HeadBank
from allheads.twin.wiring import Wiring
from allheads.weights.vocabulary import TokenValue, extreme_tokens, read_tokens, write_logits

if TYPE_CHECKING:
    import pandas

#: The sides of a neuron, in their order.
SIDES = ("opens", "closes", "raises", "lowers", "promotes", "suppresses")


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

        rows = [(side, token.token, token.text, token.value) for side in SIDES for token in getattr(self, side)]
        return pandas.DataFrame(rows, columns=["side", "token", "text", "value"])

    def __str__(self) -> str:
        texts = {side: " ".join(repr(token.text) for token in getattr(self, side)) for side in SIDES}
        return "\n".join([self.label, *(f"{side:>10}: {text}" for side, text in texts.items() if text)])


def neuron_circuits(wiring: Wiring, layer: int, neurons: Sequence[int], k: int) -> list[NeuronCircuit]:
    """Read these neurons of a layer together. Raises `AllHeadsError` if the layer's heads were edited."""
    bank: HeadBank = wiring.twin.banks[layer]
    bank.require_shared("a neuron whose heads share its weights", f"L{layer}")
    weights, sublayer, some = bank.weights(), wiring.neurons[layer], list(neurons)

    def read(W: Tensor, b: Tensor | None) -> Tensor:
        return read_tokens(wiring, sublayer, W[0, some].detach().T, None if b is None else b[0, some]).T

    opens = extreme_tokens(wiring.twin, read(weights.W_Q, weights.b_Q), k)
    none: list[list[TokenValue]] = [[] for _ in some]
    raises = (none, none) if weights.W_V is None else extreme_tokens(wiring.twin, read(weights.W_V, weights.b_V), k)
    promotes = extreme_tokens(wiring.twin, write_logits(wiring, sublayer, weights.W_O[0, some].detach()), k)
    return [
        NeuronCircuit(f"L{layer}.N{neuron}", *sides)
        for neuron, *sides in zip(some, *opens, *raises, *promotes, strict=True)
    ]
