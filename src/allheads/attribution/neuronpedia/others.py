"""A graph that another tool has made."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import Any, cast

from allheads.attribution.graph_content import Edge, GraphContent, Inflow, Node, from_sources
from allheads.attribution.neuronpedia.file_schema import FileLink, FileNode, GraphFile


def from_others(file: GraphFile) -> GraphContent:
    """The graph in a file of another tool. Raises `ValueError` where it is none."""
    target = _target(file)
    nodes = {node.node_id: node for node in file.nodes if node.kind != "T" or node is target}
    names = {name: _name(node) for name, node in nodes.items() if node.kind != "?"}
    if len(set(names.values()) - {"constants"}) < sum(name != "constants" for name in names.values()):
        raise ValueError("two nodes at one place of one layer")
    into: dict[str, list[FileLink]] = defaultdict(list)
    for link in file.links:
        if link.source in nodes and link.target in names:
            into[link.target].append(link)
    effects, factors = _effects(nodes, into, target)
    edges: list[Edge] = []
    made: dict[str, Node] = {}
    shown = missing = 0.0
    for name in [target.node_id, *(name for name in names if name != target.node_id)]:
        links = into.get(name, [])
        kept = [
            Edge(names[link.source], names[name], link.weight * factors[name]) for link in links if link.source in names
        ]
        size = sum(abs(link.weight * factors[name]) for link in links if link.source not in names)
        total, inside = effects[name], sum(edge.weight for edge in kept)
        shown, missing, edges = shown + sum(abs(edge.weight) for edge in kept), missing + size, edges + kept
        inflow = {"V": Inflow(total, inside, total - inside, size)} if links else {}
        # Constants are several nodes there, one for each layer.
        before = made[names[name]].effect if names[name] in made else 0.0
        made[names[name]] = _node(file, nodes[name], names[name], before + total, cast(Any, inflow))
    last = 1 + max((node.layer for node in made.values()), default=0)
    made["target"] = replace(made["target"], layer=last)
    quoted = re.search(r'"(.*)"', target.clerp)
    rule = str(file.metadata.generation_settings.get("rule", "another tool's direct effects"))
    marks = file.qParams.marks.renamed(names)
    notes = {names[name]: nodes[name].clerp for name in names if nodes[name].kind in "AN" and nodes[name].clerp}
    return GraphContent(
        rule,
        quoted[1] if quoted else target.clerp or "target",
        file.metadata.prompt_tokens,
        effects[target.node_id],
        list(made.values()),
        edges,
        shown / (shown + missing) if shown + missing else 1.0,
        replace(marks, notes=notes),
    )


def _target(file: GraphFile) -> FileNode:
    logits = [node for node in file.nodes if node.kind == "T"]
    if not logits:
        raise ValueError("no logit among its nodes")
    named = [node for node in logits if node.is_target_logit]
    return named[0] if named else max(logits, key=lambda node: node.token_prob or 0.0)


def _name(node: FileNode) -> str:
    """What a node is called here."""
    if node.kind in "TC":
        return {"T": "target", "C": "constants"}[node.kind]
    if node.kind == "E":
        return f"embed@{node.ctx_idx}"
    layer = str(node.layer)
    middle = re.fullmatch(r"\d+_(?:att_)?(\d+)_\d+", node.node_id)
    index = middle[1] if middle else str(node.feature)
    if not (layer.isdecimal() and index.isdecimal()):
        raise ValueError(f"a node {node.node_id!r} without a layer and a feature")
    return f"L{int(layer)}.{node.kind}{int(index)}@{node.ctx_idx}"


def _effects(
    nodes: dict[str, FileNode], into: dict[str, list[FileLink]], target: FileNode
) -> tuple[dict[str, float], dict[str, float]]:
    """Effects on the target over all ways, by node, and what each link into a node is multiplied with."""
    backward = from_sources(nodes, (link for links in into.values() for link in links))[::-1]
    effects = dict.fromkeys(nodes, 0.0)
    factors: dict[str, float] = {}
    for name in backward:
        given = sum(link.weight for link in into.get(name, []))
        if name == target.node_id:
            effects[name], factors[name] = given, 1.0
        else:
            whole = nodes[name].activation or given
            factors[name] = effects[name] / whole if whole else 0.0
        for link in into.get(name, []):
            effects[link.source] += link.weight * factors[name]
    return effects, factors


def _node(file: GraphFile, node: FileNode, name: str, effect: float, inflow: dict[Any, Any]) -> Node:
    tokens = file.metadata.prompt_tokens
    if not 0 <= node.ctx_idx < len(tokens):
        raise ValueError(f"a node {node.node_id!r} at position {node.ctx_idx} of {len(tokens)}")
    position = -1 if node.kind == "C" else node.ctx_idx
    token = "" if node.kind == "C" else tokens[node.ctx_idx]
    if node.kind in "TEC":
        label = {"T": "T", "E": "embed", "C": "constants"}[node.kind]
        return Node(name, cast(Any, node.kind), label, -1, position, token, effect, inflow)
    return Node(name, cast(Any, node.kind), name.rpartition("@")[0], int(node.layer), position, token, effect, inflow)
