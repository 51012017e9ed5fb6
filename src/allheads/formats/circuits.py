"""Circuits as EAP-IG and MIB's circuit track keep them: JSON with a configuration, nodes and edges.

``cfg`` has the sizes, from which their reader makes every node and edge; ``nodes`` and ``edges`` say of these what is
in the circuit. A node is ``input``, a head ``a3.h5``, an MLP ``m3`` or ``logits``. Hidden neurons have no place there:
they stand in their MLP's node under ``hidden_neurons``, ``{"812": score}``, which that reader passes over, so that it
sees the whole MLP. What is called ``neurons`` there are dimensions of what a node writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from allheads.attribution.attribution import Attribution
from allheads.disk import checked_path, named_path, write_whole
from allheads.errors import AllHeadsError
from allheads.formats.circuit import Circuit, Part
from allheads.formats.circuit_nodes import CircuitShape
from allheads.untrusted import fitted, read_json

#: Bytes that are read at most: every edge of a model with a thousand heads.
_LARGEST = 2**27
_HIDDEN = "hidden_neurons"
#: Layers, heads and dimensions of a model that is read at most.
_SIZES = 100_000
_NODE = re.compile(r"input|logits|m(?P<mlp>\d+)|a(?P<layer>\d+)\.h(?P<head>\d+)")


def write_circuit(found: Attribution, path: str | Path, *, keep: int = 200) -> Path:
    """Write the largest heads and neurons of an attribution as a circuit that EAP-IG and MIB read.

    Every head and MLP is a node with a score, the sum of its effects over positions (and neurons). Heads among the
    ``keep`` largest parts are in the graph, MLPs if one of their neurons is; so are all edges between these, with
    score 0, because an attribution has none for edges.

    Args:
        found: from `ah.attribute`.
        path: a file that ends in .json; it is there whole or not at all.
        keep: how many heads and neurons are in the circuit.

    Returns:
        The path.

    Raises:
        AllHeadsError: encoders, cross-attention, experts and layers with fewer heads, which have no node there;
            ``keep`` below 1; another suffix, or a path that cannot be written.

    >>> import allheads as ah
    >>> found = ah.attribute(twin, "When Mary and John", (" Mary", " John"))
    >>> circuit = ah.formats.read_circuit(ah.formats.write_circuit(found, "circuit.json", keep=50))
    >>> circuit.facts()["parts"]
    50
    """
    target = checked_path(path)
    if target.suffix != ".json":
        raise AllHeadsError("a file that ends in .json", target.name, "Name it so.")
    circuit = Circuit.of(found, keep)
    nodes: dict[str, dict[str, Any]] = {
        "input": {"in_graph": True, "score": sum(float(begin.sum()) for begin in found.begins.values())}
    }
    nodes |= {name: {"in_graph": part.inside, "score": part.score} for name, part in circuit.nodes().items()}
    nodes["logits"] = {"in_graph": True}
    for part in circuit.parts:
        if match := re.fullmatch(r"L(\d+)\.N(\d+)", part.label):
            nodes[f"m{match[1]}"].setdefault(_HIDDEN, {})[match[2]] = part.score
    edges = {name: {"score": 0.0, "in_graph": True} for name in circuit.inner_edges()}
    content = {"cfg": vars(circuit.shape), "nodes": nodes, "edges": edges, "allheads": found.facts()}
    write_whole(target, json.dumps(content, allow_nan=False))
    return target


def read_circuit(path: str | Path) -> Circuit:
    """Read a circuit of EAP-IG, of MIB, or one that `write_circuit` wrote.

    Scores that were never measured (NaN there) are None. Of edges, their number is kept.

    Raises `AllHeadsError` for anything else: nodes that such a model has not, damaged files, and nodes of which only
    some output dimensions are in the circuit, because labels name heads and MLPs whole.

    >>> import allheads as ah
    >>> ah.formats.read_circuit("nothing.json")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected a circuit as EAP-IG and MIB write it, got nothing.json: No such file or \
directory. Check the path.
    """
    path = named_path(path)
    try:
        content = read_json(path, dict[str, Any], _LARGEST)
        if missing := {"cfg", "nodes", "edges"} - content.keys():
            raise ValueError(f"no {min(missing)!r}")
        cfg = fitted(content["cfg"], dict[str, Any])
        shape = fitted({name: cfg.get(name) for name in CircuitShape.__annotations__}, CircuitShape)
        if not all(0 < size <= _SIZES for size in (shape.n_layers, shape.n_heads, shape.d_model)):
            raise ValueError(f"sizes that no model has: {shape}")
        # In older files a node is a truth value, and "neurons" stand beside.
        nodes = fitted(content["nodes"], dict[str, bool | dict[str, Any]])
        edges = fitted(content["edges"], dict[str, dict[str, Any]])
        older = fitted(content.get("neurons") or {}, dict[str, list[bool]])
        entries = {
            name: {"in_graph": node, "neurons": older.get(name)} if isinstance(node, bool) else node
            for name, node in nodes.items()
        }
        parts = [part for name, node in entries.items() for part in _parts(name, node, shape)]
        return Circuit(shape, parts, sum(edge.get("in_graph") is True for edge in edges.values()))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AllHeadsError(
            "a circuit as EAP-IG and MIB write it", f"{path.name}: {reason}", "Check the path."
        ) from None


def _parts(name: str, entries: dict[str, Any], shape: CircuitShape) -> list[Part]:
    """What a node says of a head, or of an MLP and its hidden neurons."""
    match = _NODE.fullmatch(name)
    layer = int(match["mlp"] or match["layer"] or 0) if match else shape.n_layers
    if match is None or layer >= shape.n_layers or int(match["head"] or 0) >= shape.n_heads:
        raise ValueError(f"a node {name!r}, which such a model has not")
    if match["mlp"] is None and match["layer"] is None:  # input and logits are always there
        return []
    inside = fitted(entries.get("in_graph"), bool)
    written = fitted(entries.get("neurons") or [], list[bool])
    if inside and not all(written):
        raise ValueError(f"{name} with {sum(written)} of {len(written)} output dimensions")
    label = f"L{layer}.N" if match["mlp"] is not None else f"L{layer}.A{match['head']}"
    hidden = fitted(entries.get(_HIDDEN) or {}, dict[str, FiniteFloat])
    if not all(index.isdecimal() and index == str(int(index)) for index in hidden) or (hidden and match["mlp"] is None):
        raise ValueError(f"{_HIDDEN} of {name} that are none")
    score = entries.get("score")
    value = None if score is None else fitted(score, float)
    value = None if value is not None and value != value else value  # NaN: never measured
    return [Part(label, value, inside), *(Part(f"{label}{int(index)}", x, inside) for index, x in hidden.items())]
