"""The circuit of a neuron: which tokens open its gate, which its value carries, and what it says to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from allheads.heads.bank import HeadBank
from allheads.twin.twin import TwinBridge
from allheads.twin.wiring import Wiring
from allheads.weights.vocabulary import TokenValue, read_tokens, top_tokens, write_logits

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
        texts = {side: " ".join(repr(each.text) for each in getattr(self, side)) for side in _SIDES}
        return "\n".join([self.label, *(f"{side:>10}: {text}" for side, text in texts.items() if text)])


def neuron_circuits(wiring: Wiring, layer: int, neurons: Sequence[int], k: int) -> list[NeuronCircuit]:
    """Read these neurons of a layer together. Raises `AllHeadsError` if the layer's heads were edited."""
    bank: HeadBank = wiring.twin.banks[layer]
    bank.require_shared("a neuron whose heads share its weights", f"L{layer}")
    weights, sublayer, some = bank.weights(), wiring.neurons[layer], list(neurons)

    def read(W: Tensor, b: Tensor | None) -> Tensor:
        return read_tokens(wiring, sublayer, W[0, some].detach().T, None if b is None else b[0, some]).T

    sides: dict[str, list[list[TokenValue]]] = {side: [[] for _ in some] for side in _SIDES}
    sides |= _both("opens", "closes", wiring.twin, read(weights.W_Q, weights.b_Q), k)
    if weights.W_V is not None:
        sides |= _both("raises", "lowers", wiring.twin, read(weights.W_V, weights.b_V), k)
    logits = write_logits(wiring, sublayer, weights.W_O[0, some].detach())
    sides |= _both("promotes", "suppresses", wiring.twin, logits, k)
    return [
        NeuronCircuit(f"L{layer}.N{neuron}", **{side: sides[side][at] for side in _SIDES})
        for at, neuron in enumerate(some)
    ]


def _both(most: str, least: str, twin: TwinBridge, values: Tensor, k: int) -> dict[str, list[list[TokenValue]]]:
    """The largest and the smallest of each row, by the names of these two sides."""
    return {most: top_tokens(twin, values, k), least: top_tokens(twin, values, k, least=True)}
