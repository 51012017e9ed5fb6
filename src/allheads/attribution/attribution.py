"""What an attribution says: a number for every part of the network, and the identities that hold between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.confirm import Confirmation, confirm
from allheads.attribution.metric import Metric
from allheads.attribution.question import Question
from allheads.attribution.rules import Rule
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.twin.labels import Kind, Label

if TYPE_CHECKING:
    import pandas

    from allheads.attribution.attribution_graph import AttributionGraph


@dataclass(frozen=True)
class Contribution:
    """One part at one position: ``effect`` over all paths, of which ``direct`` goes straight into the logits."""

    label: str
    position: int
    effect: float
    direct: float


@dataclass(frozen=True)
class Attribution:
    """Contributions to a target, or to something a head reads, by one forward and one backward pass under a rule.

    Embeddings and constants are the cut of the stream before layer 0, and sum to the target where the rule is complete.
    Heads and neurons pass on what they were given: their effects overlap along a path, and do not sum to it.
    Their ``direct`` parts do, with those of the embeddings and constants: every write into the stream is counted once.
    All numbers are in units of the target (logits).
    """

    question: Question
    #: The target in the twin, and what the rule does not attribute; 0 for a linear target under a complete rule.
    target_value: float
    intercept: float
    embeddings: Float[Tensor, " pos"]
    positions: Float[Tensor, " pos"] | None
    #: By name, in the order of the network; the second number is the layer, -1 before the first and n_layers after.
    constants: dict[str, tuple[float, int]]
    heads: Float[Tensor, "layer head pos"]
    neurons: Float[Tensor, "layer pos d_mlp"]
    #: At the target's position; nothing is written into its logits from elsewhere.
    heads_direct: Float[Tensor, "layer head"]
    neurons_direct: Float[Tensor, "layer d_mlp"]
    #: Contribution of the stream before each layer up to the one that reads the target, and after the last.
    stream: Float[Tensor, "cut pos"]
    #: What contributions are relative to, and what the mean embeddings contribute.
    means: Means | None = None
    baseline: float = 0.0

    @property
    def rule(self) -> Rule:
        """What is frozen."""
        return self.question.rule

    @property
    def target(self) -> Metric:
        """What is explained; it has a ``name`` and a ``position``."""
        return self.question.metric

    @cached_property
    def tokens(self) -> list[str]:
        """What the tokens of the prompt say."""
        return self.question.tokens

    def graph(self, *, budget: int = 100, coverage: float = 1.0) -> AttributionGraph:
        """Which parts write into which, on the way to this target; see `ah.graph`.

        Args:
            budget: heads and neurons that are kept at most.
            coverage: stop when this share of absolute edge weight into kept nodes is kept.

        Raises:
            AllHeadsError: a budget below 1, a coverage outside (0, 1], rule='gradient', a target inside the network.

        >>> found.graph(budget=500).save("graph.json")  # doctest: +SKIP
        """
        # Imported here: making a graph, or asking again, uses what makes this result.
        from allheads.attribution.graph import grow

        return grow(self.question, budget, coverage)

    def confirm(self, k: int = 100) -> Confirmation:
        """Take the k largest parts away, one by one, and compare with their effects; see
        `allheads.attribution.confirm`.

        >>> print(found.confirm())  # doctest: +SKIP
        """
        parts = [(part.label, part.position, part.effect) for part in self.top(k)]
        return confirm(self.question, parts, self.target_value)

    def by_source(self) -> Float[Tensor, "layer head destination source"]:
        """The effect of every ordinary head, split by the position that it carried from; runs the twin once more."""
        from allheads.attribution.attribute import by_source

        return by_source(self.question)

    def relative_to(self, means: Means) -> Attribution:
        """The same question with contributions ``(a - mean) W_O . G``: embeddings, heads and neurons less their means.

        Raises `AllHeadsError` for means of another twin, or by position on prompts of another length.

        >>> found.relative_to(ah.corpus.means(twin, texts)).top(3)  # doctest: +SKIP
        """
        from allheads.attribution.attribute import answer

        return answer(self.question, means)

    @property
    def total(self) -> float:
        """The sum over embeddings and constants: the target, where the rule is complete."""
        return self.cut(0)

    def cut(self, layer: int) -> float:
        """The sum over the stream before ``layer``, and over the constants from there on.

        Raises `AllHeadsError` for a layer that is not there; for logits, ``n_layers`` is the cut after the last.
        """
        if not 0 <= layer < len(self.stream):
            raise AllHeadsError(f"a cut from 0 to {len(self.stream) - 1}", str(layer), "Cuts are before layers.")
        if layer == 0:
            stream = float(self.embeddings.sum()) + (0.0 if self.positions is None else float(self.positions.sum()))
            return stream + sum(value for value, _ in self.constants.values()) + self.intercept + self.baseline
        after = sum(value for value, at in self.constants.values() if at >= layer)
        return float(self.stream[layer].sum()) + after + self.intercept

    @property
    def completeness_error(self) -> float:
        """The largest gap between the target and a cut, relative to the sum of absolute contributions of that cut."""
        gaps = []
        for layer in range(len(self.stream)):
            size = float(self.stream[layer].abs().sum())
            if layer == 0:
                size = float(self.embeddings.abs().sum())
                size += abs(self.baseline) + (0.0 if self.positions is None else float(self.positions.abs().sum()))
            size += sum(abs(value) for value, at in self.constants.values() if at >= layer or layer == 0)
            gaps.append(abs(self.cut(layer) - self.target_value) / max(size, abs(self.target_value), 1e-300))
        return max(gaps)

    def of(self, label: str) -> list[Contribution]:
        """The contributions of one head or neuron, at every position. Raises `AllHeadsError` for an unknown label."""
        wanted = Label.parse(label)
        table = self.heads if wanted.kind == "A" else self.neurons.transpose(1, 2)
        layers, count, length = table.shape
        known = wanted.kind != "X" and wanted.part is None and wanted.stem == f"L{wanted.layer}"
        if not known or wanted.layer >= layers or wanted.index >= count:
            last = f"L{layers - 1}.{'A' if wanted.kind == 'A' else 'N'}{count - 1}"
            raise AllHeadsError(f"a label up to {last}", label, "Neurons are whole here: L3.N812.")
        return [self._contribution(wanted.kind, wanted.layer, wanted.index, position) for position in range(length)]

    def top(
        self, k: int = 10, *, by: str = "size", kind: str | None = None, skip_first: bool = False
    ) -> list[Contribution]:
        """The k largest contributions of heads and neurons at positions, by ``size``, or by ``sign``: most for first.

        ``kind`` is ``"A"`` for ordinary heads only, ``"N"`` for neurons only. ``skip_first`` leaves out the first
        position, where many models rest.
        """
        if by not in ("size", "sign") or kind not in (None, "A", "N"):
            raise AllHeadsError("by='size' or 'sign', and kind 'A', 'N' or None", f"{by!r}, {kind!r}", "Change it.")
        tables = {"A": self.heads, "N": self.neurons.transpose(1, 2)}
        chosen = [name for name in tables if kind in (None, name)]
        ranks = [tables[name].abs() if by == "size" else tables[name].clone() for name in chosen]
        for rank in ranks:
            rank[..., : int(skip_first)] = -torch.inf
        rank = torch.cat([table.flatten() for table in ranks])
        order = rank.topk(min(k, int((rank > -torch.inf).sum()))).indices.tolist()
        return [self._at(number, chosen) for number in order]

    def by_layer(self) -> dict[str, Float[Tensor, " layer"]]:
        """Direct contributions summed over each layer: ``heads`` and ``neurons``."""
        return {"heads": self.heads_direct.sum(1), "neurons": self.neurons_direct.sum(1)}

    def to_dataframe(self, k: int | None = None) -> pandas.DataFrame:
        """Heads and neurons at positions, largest first; ``k`` of them, or 1000.

        Columns: label, layer, kind, position, token, effect, direct.
        """
        import pandas

        rows = [self._row(part) for part in self.top(1000 if k is None else k)]
        return pandas.DataFrame(rows, columns=["label", "layer", "kind", "position", "token", "effect", "direct"])

    def __iter__(self) -> Iterator[Contribution]:
        """Every head and neuron at every position, heads first."""
        kinds = ["A", "N"]
        return (self._at(number, kinds) for number in range(self.heads.numel() + self.neurons.numel()))

    def _at(self, number: int, kinds: list[str]) -> Contribution:
        """The contribution with this number among all of these kinds, one after the other."""
        for kind in kinds:
            layers, count, length = (self.heads if kind == "A" else self.neurons.transpose(1, 2)).shape
            if number < layers * count * length:
                break
            number -= layers * count * length
        layer, rest = divmod(number, count * length)
        return self._contribution(kind, layer, *divmod(rest, length))

    def _contribution(self, kind: str, layer: int, index: int, position: int) -> Contribution:
        label = str(Label(f"L{layer}", cast(Kind, kind), index))
        ordinary = kind == "A"
        effect = self.heads[layer, index, position] if ordinary else self.neurons[layer, position, index]
        direct = (self.heads_direct if ordinary else self.neurons_direct)[layer, index]
        return Contribution(label, position, float(effect), float(direct) if position == self.target.position else 0.0)

    def _row(self, part: Contribution) -> dict[str, Any]:
        label = Label.parse(part.label)
        token = self.tokens[part.position]
        return {
            "label": part.label,
            "layer": label.layer,
            "kind": label.kind,
            "position": part.position,
            "token": token,
            "effect": part.effect,
            "direct": part.direct,
        }
