"""A circuit: which heads, MLPs and hidden neurons do a task, with a score for each, and no positions."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from allheads.attribution.attribution import Attribution
from allheads.errors import AllHeadsError
from allheads.formats.circuit_nodes import CircuitShape, edges_between, node_name
from allheads.result import Result
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge

if TYPE_CHECKING:
    import pandas

#: Sublayers that have a node: the heads, or the neurons, of a plain decoder's layer.
_SUBLAYER = re.compile(r"L(\d+)\.([AN])")


@dataclass(frozen=True)
class Part:
    """A head ``L3.A5``, a hidden neuron ``L3.N812`` or a whole MLP ``L3.N``; a score of None was never measured."""

    label: str
    score: float | None
    inside: bool


@dataclass(frozen=True, repr=False)
class Circuit(Result):
    """Heads, MLPs and hidden neurons with their scores, and which of them are ``inside``.

    An MLP of which single neurons are listed is inside if one of them is; without, it is inside as a whole. ``edges``
    is how many edges the circuit has: their names are not kept.
    """

    shape: CircuitShape
    parts: list[Part]
    edges: int

    @classmethod
    def of(cls, found: Attribution, keep: int) -> Circuit:
        """The ``keep`` largest heads and neurons of an attribution, each summed over positions.

        Raises `AllHeadsError` for parts of the network that have no node in a circuit, and for ``keep`` below 1.
        """
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise AllHeadsError("a number of parts from 1", repr(keep), "Try keep=200.")
        shape = CircuitShape.of(found.question.twin)
        for name, table in found.effects.items():
            _require_node(name, len(table), shape)
        summed = {name: table.double().sum(0 if name[-1] == "N" else 1) for name, table in found.effects.items()}
        scores = {f"{name}{index}": score for name in summed for index, score in enumerate(summed[name].tolist())}
        kept = set(sorted(scores, key=lambda label: -abs(scores[label]))[:keep])
        touched = {label.rstrip("0123456789") for label in kept}
        parts = [Part(label, score, label in kept) for label, score in scores.items() if ".A" in label or label in kept]
        parts += [Part(name, float(of.sum()), name in touched) for name, of in summed.items() if name[-1] == "N"]
        made = cls(shape, parts, 0)
        return replace(made, edges=len(made.inner_edges()))

    def labels(self, twin: TwinBridge) -> list[str]:
        """What is inside, as labels of a twin: heads, and hidden neurons; all neurons of an MLP that is inside whole.

        Raises `AllHeadsError` for a twin of other sizes.

        >>> import allheads as ah
        >>> path = ah.formats.write_circuit(ah.attribute(twin, "Mary and John", " Mary"), "circuit.json", keep=3)
        >>> with ah.ablate(twin, ah.formats.read_circuit(path).labels(twin)):
        ...     logits = twin("Mary and John")
        """
        return self._sides(twin)[0]

    def outside(self, twin: TwinBridge) -> list[str]:
        """Every other head and neuron: what to take away to see what the circuit does by itself. Raises as `labels`."""
        return self._sides(twin)[1]

    def _sides(self, twin: TwinBridge) -> tuple[list[str], list[str]]:
        if CircuitShape.of(twin) != self.shape:
            raise AllHeadsError(
                f"a twin of the circuit's sizes, {self.shape}", str(CircuitShape.of(twin)), "Take its own."
            )
        inside = {part.label for part in self.parts if part.inside}
        # An MLP of which single neurons are listed is not there as a whole.
        listed = {label.rstrip("0123456789") for label in inside if _kind(label) == "N"}
        whole = {label for label in inside if not _kind(label)} - listed
        everything = dict.fromkeys(str(head.label.neuron) for head in twin.index)
        if unknown := {label for label in inside if _kind(label)} - everything.keys():
            raise AllHeadsError("a twin with the circuit's parts", f"one without {min(unknown)}", "Take its own.")
        sides: tuple[list[str], list[str]] = ([], [])
        for label in everything:
            sides[label not in inside and label.rstrip("0123456789") not in whole].append(label)
        return sides

    def nodes(self) -> dict[str, Part]:
        """Heads and MLPs by their names in EAP-IG: ``a3.h5``, ``m3``."""
        return {node: part for part in self.parts if (node := node_name(part.label))}

    def inner_edges(self) -> list[str]:
        """The edges between nodes that are inside, by their names in EAP-IG."""
        return edges_between({node for node, part in self.nodes().items() if part.inside}, self.shape)

    def facts(self) -> dict[str, Any]:
        """The sizes, and how many heads, whole MLPs and neurons are inside; ``parts`` are the heads and neurons."""
        kinds = Counter(_kind(part.label) for part in self.parts if part.inside)
        counts = {"heads": kinds["A"], "mlps": kinds[""], "neurons": kinds["N"], "parts": kinds["A"] + kinds["N"]}
        return asdict(self.shape) | counts | {"edges": self.edges}

    def to_dataframe(self) -> pandas.DataFrame:
        """What is inside first, largest first. Columns: label, score, inside."""
        import pandas

        rows = sorted(self.parts, key=lambda part: (not part.inside, -abs(part.score or 0.0)))
        return pandas.DataFrame([asdict(part) for part in rows], columns=["label", "score", "inside"])


def _kind(label: str) -> str:
    return "" if label.endswith(".N") else Label.parse(label).kind


def _require_node(name: str, count: int, shape: CircuitShape) -> None:
    """Refuse parts without a node: of other stacks, of cross-attention, of experts, and layers with fewer heads."""
    if _SUBLAYER.fullmatch(name) is None:
        kind = "cross-attention" if name.endswith("X") else "experts" if "." in name[:-2] else "another stack"
        raise AllHeadsError(
            "a plain decoder: nodes are the heads and the MLP of a layer, a3.h5 and m3",
            f"{name}, of {kind}, which has no node",
            "Keep it with found.save, or as a graph.",
        )
    if name.endswith("A") and count != shape.n_heads:
        raise AllHeadsError(
            f"{shape.n_heads} heads in every layer", f"{count} at {name}", "Circuits have one number of heads."
        )
