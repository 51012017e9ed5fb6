"""Nodes and edges of a circuit as EAP-IG names them: all that there are follow from four numbers.

Every node reads what the input and the nodes before it write: heads of a layer what stands before the layer, its MLP
also what these heads write, unless attention and MLP are parallel. Edges into a head are three, for q, k and v.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge, require_twin


@dataclass(frozen=True)
class CircuitShape:
    """What the nodes of a circuit follow from."""

    n_layers: int
    n_heads: int
    d_model: int
    parallel_attn_mlp: bool

    @classmethod
    def of(cls, twin: TwinBridge) -> CircuitShape:
        """That of a twin. Raises `AllHeadsError` for what is none."""
        cfg = require_twin(twin).cfg
        return cls(cfg.n_layers, cfg.n_heads, cfg.d_model, bool(cfg.parallel_attn_mlp))


def node_name(label: str) -> str | None:
    """What EAP-IG calls a head or an MLP; None for a neuron.

    >>> node_name("L3.A5"), node_name("L3.N"), node_name("L3.N812")
    ('a3.h5', 'm3', None)
    """
    if label.endswith(".N"):
        return f"m{label[1:-2]}"
    part = Label.parse(label)
    return f"a{part.layer}.h{part.index}" if part.kind == "A" else None


def edges_between(nodes: Collection[str], shape: CircuitShape) -> list[str]:
    """All edges between these nodes, the input and the logits.

    >>> edges_between(["a0.h1", "m0"], CircuitShape(n_layers=1, n_heads=2, d_model=8, parallel_attn_mlp=True))
    ['input->a0.h1<q>', 'input->a0.h1<k>', 'input->a0.h1<v>', 'input->m0', 'input->logits', 'a0.h1->logits', \
'm0->logits']
    """
    before, edges = ["input"], []
    for layer in range(shape.n_layers):
        heads = [name for head in range(shape.n_heads) if (name := f"a{layer}.h{head}") in nodes]
        mlps = [name for name in (f"m{layer}",) if name in nodes]
        edges += [f"{source}->{head}<{side}>" for source in before for head in heads for side in "qkv"]
        read = before if shape.parallel_attn_mlp else [*before, *heads]
        edges += [f"{source}->{mlp}" for source in read for mlp in mlps]
        before = [*before, *heads, *mlps]
    return [*edges, *(f"{source}->logits" for source in before)]
