"""What an attribution says: a number for every part of the network, and the identities that hold between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.confirm import Confirmation, confirm
from allheads.attribution.metric import Metric
from allheads.attribution.question import Question
from allheads.attribution.rules import Rule
from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.result import SHOWN, Result, finite
from allheads.twin.labels import Label
from allheads.twin.sites import SCALARS

if TYPE_CHECKING:
    import pandas

    from allheads.attribution.attribution_graph import AttributionGraph
    from allheads.attribution.latents import LatentAttribution
    from allheads.twin.autoencoder import SparseAutoencoder


#: What sublayers are of, by the letter of their parts.
_SORTS = {"A": "heads", "X": "heads", "N": "neurons", "F": "latents", "R": "errors"}


@dataclass(frozen=True)
class Contribution:
    """One part at one position: ``effect`` over all paths, of which ``direct`` goes straight into the logits."""

    label: str
    position: int
    effect: float
    direct: float


@dataclass(frozen=True, repr=False)
class Attribution(Result):
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
    #: What every stream begins with, by position: ``embed``, ``pos_embed``, ``decoder_embed`` ..., or the first stream
    #: of a stack that reads no tokens.
    begins: dict[str, Float[Tensor, " pos"]]
    #: By name, in the order of the network; the second number is the layer, -1 before the first and n_layers after.
    #: With several stacks, 1 is after all layers.
    constants: dict[str, tuple[float, int]]
    #: Of every sublayer that ran, ``[head pos]`` or ``[pos d_mlp]``: ``L3.A``, ``L3.N``, ``L3.M2.N``, ``DL3.X``.
    effects: dict[str, Float[Tensor, "_ _"]]
    #: The same for what goes straight into the target.
    direct: dict[str, Float[Tensor, "_ _"]]
    #: Contribution of the stream before each layer up to the one that reads the target, and after the last. With
    #: several stacks, the last row is the end of the last.
    stream: Float[Tensor, "cut pos"]
    #: What contributions are relative to, and what the mean embeddings contribute.
    means: Means | None = None
    baseline: float = 0.0

    @property
    def embeddings(self) -> Float[Tensor, " pos"]:
        """What the tokens contribute by themselves: those that the decoder has written, beside an encoder."""
        return self.begins[self._own(("decoder_embed", "decoder_blocks.0.hook_resid_pre", "embed"))]

    @property
    def positions(self) -> Float[Tensor, " pos"] | None:
        """What learned positions contribute, where the stream begins with them, too."""
        return self.begins.get("decoder_pos_embed" if "decoder_embed" in self.begins else "pos_embed")

    def _own(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if name in self.begins), next(iter(self.begins)))

    @cached_property
    def heads(self) -> Float[Tensor, "layer head pos"]:
        """Effects of ordinary heads in a stack of equal layers.

        Raises `AllHeadsError` for any other network: see `effects`.
        """
        return self._table(self.effects, "A")

    @cached_property
    def neurons(self) -> Float[Tensor, "layer pos d_mlp"]:
        """Effects of neurons in a stack of equal layers. Raises `AllHeadsError` as `heads` does."""
        return self._table(self.effects, "N")

    @cached_property
    def heads_direct(self) -> Float[Tensor, "layer head"]:
        """What heads write straight into the target. Raises `AllHeadsError` as `heads` does."""
        return self._table(self.direct, "A").sum(2)

    @cached_property
    def neurons_direct(self) -> Float[Tensor, "layer d_mlp"]:
        """What neurons write straight into the target. Raises `AllHeadsError` as `heads` does."""
        return self._table(self.direct, "N").sum(1)

    def _table(self, effects: dict[str, Tensor], kind: str) -> Tensor:
        names = [name for name in effects if name.endswith(f".{kind}")]
        shapes = {effects[name].shape for name in names}
        if len(shapes) != 1 or names != [f"L{layer}.{kind}" for layer in range(len(names))]:
            raise AllHeadsError(
                "one stack of layers with the same heads and neurons in each",
                ", ".join(f"{name} {tuple(effects[name].shape)}" for name in names)[:200] or f"none at .{kind}",
                "Read found.effects and found.direct, by sublayer, or found.top().",
            )
        return torch.stack([effects[name] for name in names])

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

        >>> import allheads as ah
        >>> found = ah.attribute(twin, "Mary and John", " Mary")
        >>> found.graph(budget=5).save("graph.json").name
        'graph.json'
        """
        # Imported here: making a graph, or asking again, uses what makes this result.
        from allheads.attribution.graph import grow

        return grow(self.question, budget, coverage)

    def confirm(self, k: int = 100) -> Confirmation:
        """Take the k largest parts away, one by one, and compare with their effects; see
        `allheads.attribution.confirm`.

        >>> import allheads as ah
        >>> print(ah.attribute(twin, "Mary and John", " Mary").confirm(k=5))
        5 parts; frozen twin: relative error at most ...
        """
        # Latents are not there to be taken away.
        largest = sorted(
            (part for kind in "AXN" for part in self.top(k, kind=kind)), key=lambda part: -abs(part.effect)
        )
        parts = [(part.label, part.position, part.effect) for part in largest[:k]]
        return confirm(self.question, parts, self.target_value)

    def through(self, autoencoder: SparseAutoencoder) -> LatentAttribution:
        """The same question, with what passes a hook point split into the latents of a sparse autoencoder and an error.

        See `allheads.attribution.latents`; ``ah.formats.read_autoencoder`` reads those of SAELens.

        Raises `AllHeadsError` for an autoencoder of another width, or at a hook point that is not of the stream.
        """
        from allheads.attribution.latents import through

        return through(self.question, autoencoder)

    def by_source(self) -> Float[Tensor, "layer head destination source"]:
        """The effect of every ordinary head, split by the position that it carried from; runs the twin once more."""
        from allheads.attribution.attribute import by_source

        return by_source(self.question)

    def relative_to(self, means: Means) -> Attribution:
        """The same question with contributions ``(a - mean) W_O . G``: embeddings, heads and neurons less their means.

        Raises `AllHeadsError` for means of another twin, or by position on prompts of another length.

        >>> import allheads as ah
        >>> found = ah.attribute(twin, "Mary and John", " Mary")
        >>> less = found.relative_to(ah.corpus.means(twin, ["They went to the store."]))
        >>> abs(less.total - found.total) < 1e-4
        True
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
            stream = sum(float(begin.sum()) for begin in self.begins.values())
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
                size = abs(self.baseline) + sum(float(begin.abs().sum()) for begin in self.begins.values())
            size += sum(abs(value) for value, at in self.constants.values() if at >= layer or layer == 0)
            gaps.append(abs(self.cut(layer) - self.target_value) / max(size, abs(self.target_value), 1e-300))
        return max(gaps)

    def of(self, label: str) -> list[Contribution]:
        """The contributions of one head or neuron, at every position. Raises `AllHeadsError` for an unknown label."""
        wanted = Label.parse(label)
        name = f"{wanted.stem}.{wanted.kind}"
        table = self._by_part(name) if name in self.effects else None
        if table is None or wanted.part is not None or wanted.index >= len(table):
            kinds = [known for known in self.effects if (wanted.kind in SCALARS) == known.endswith(SCALARS)]
            last = f"{kinds[-1]}{len(self._by_part(kinds[-1])) - 1}" if kinds else "none"
            raise AllHeadsError(f"a label up to {last}", label, "Neurons are whole here: L3.N812.")
        return [self._contribution(name, wanted.index, position) for position in range(table.shape[1])]

    def top(
        self, k: int = 10, *, by: str = "size", kind: str | None = None, skip_first: bool = False
    ) -> list[Contribution]:
        """The k largest contributions of heads and neurons at positions, by ``size``, or by ``sign``: most for first.

        ``kind`` is ``"A"`` for ordinary heads only, ``"X"`` for those that attend to an encoder, ``"N"`` for neurons
        only, ``"F"`` for latents, ``"R"`` for what these do not reconstruct. ``skip_first`` leaves out the first
        position, where many models rest.
        """
        if by not in ("size", "sign") or kind not in (None, "A", "X", "N", "F", "R"):
            raise AllHeadsError(
                "by='size' or 'sign', and kind 'A', 'X', 'N', 'F', 'R' or None", f"{by!r}, {kind!r}", "Change it."
            )
        names = [name for name in self._order if kind in (None, name[-1])]
        ranks = [table.abs() if by == "size" else table.clone() for table in map(self._by_part, names)]
        for rank in ranks:
            rank[:, : int(skip_first)] = -torch.inf
        rank = torch.cat([table.flatten() for table in ranks]) if ranks else torch.zeros(0)
        order = rank.topk(min(k, int((rank > -torch.inf).sum()))).indices.tolist()
        return [self._at(number, names) for number in order]

    def by_layer(self) -> dict[str, dict[str, float]]:
        """Direct contributions by layer, in the order of the network: ``{"L0": {"heads": .., "neurons": ..}, ..}``."""
        sums: dict[str, dict[str, float]] = {}
        for name, table in self.direct.items():
            layer = sums.setdefault(name.split(".")[0], {"heads": 0.0, "neurons": 0.0})
            layer[_SORTS[name[-1]]] = layer.get(_SORTS[name[-1]], 0.0) + float(table.sum())
        return sums

    def facts(self) -> dict[str, Any]:
        """The question in words, and how complete the answer is."""
        return {
            "target": self.target.name,
            "position": self.target.position,
            "rule": self.rule.name,
            "target_value": self.target_value,
            "total": self.total,
            "intercept": self.intercept,
            "completeness_error": self.completeness_error,
        }

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """Facts, ``begins`` (what every stream begins with, by position), ``constants``, and the ``rows`` of the table.

        >>> import allheads as ah
        >>> len(ah.attribute(twin, "Mary and John", " Mary").to_dict(k=3)["rows"])
        3
        """
        begins = {
            name: [
                {"position": at, "token": self.question.token_of(name, at, len(begin)), "effect": effect}
                for at, effect in enumerate(begin.tolist())
            ]
            for name, begin in self.begins.items()
        }
        constants = {name: value for name, (value, _) in self.constants.items()}
        rows = self.to_dataframe(k).to_dict("records")
        return finite(self.facts() | {"begins": begins, "constants": constants, "rows": rows})

    def preview(self) -> pandas.DataFrame:
        """The largest contributions."""
        return self.to_dataframe(SHOWN)

    def to_dataframe(self, k: int | None = None) -> pandas.DataFrame:
        """Heads and neurons at positions, largest first; ``k`` of them, or 1000.

        Columns: label, layer, kind, position, token, effect, direct.
        """
        import pandas

        rows = [self._row(part) for part in self.top(1000 if k is None else k)]
        return pandas.DataFrame(rows, columns=["label", "layer", "kind", "position", "token", "effect", "direct"])

    def __iter__(self) -> Iterator[Contribution]:
        """Every head and neuron at every position, heads first."""
        total = sum(table.numel() for table in self.effects.values())
        return (self._at(number, self._order) for number in range(total))

    @cached_property
    def _order(self) -> list[str]:
        """Sublayers, heads before neurons."""
        return sorted(self.effects, key=lambda name: name.endswith(SCALARS))

    def _by_part(self, name: str) -> Float[Tensor, "part pos"]:
        return self.effects[name].T if name.endswith(SCALARS) else self.effects[name]

    def _at(self, number: int, names: list[str]) -> Contribution:
        """The contribution with this number among all of these sublayers, one after the other."""
        for name in names:
            parts, length = self._by_part(name).shape
            if number < parts * length:
                return self._contribution(name, *divmod(number, length))
            number -= parts * length
        raise IndexError(number)

    def _contribution(self, name: str, index: int, position: int) -> Contribution:
        at = (position, index) if name.endswith(SCALARS) else (index, position)
        return Contribution(f"{name}{index}", position, float(self.effects[name][at]), float(self.direct[name][at]))

    def _row(self, part: Contribution) -> dict[str, Any]:
        label = Label.parse(part.label)
        length = self._by_part(f"{label.stem}.{label.kind}").shape[1]
        token = self.question.tokens_at(label, length)[part.position]
        return {
            "label": part.label,
            "layer": label.layer,
            "kind": label.kind,
            "position": part.position,
            "token": token,
            "effect": part.effect,
            "direct": part.direct,
        }
