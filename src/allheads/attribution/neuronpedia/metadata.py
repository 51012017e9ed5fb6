"""What a file says of a graph as a whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import allheads
from allheads.attribution.influence import influence
from allheads.attribution.rules import RULES

if TYPE_CHECKING:
    from allheads.attribution.attribution_graph import AttributionGraph

#: The version of what stands under ``allheads``.
OURS = 1
#: What the probability of a target is, by the number of tokens or classes that it names.
_PROBABILITIES = ("none: the target is no single output", "of the output", "of the first output against the second")


def metadata(graph: AttributionGraph, slug: str, tokens: list[str], silent: list[str]) -> dict[str, Any]:
    """The metadata of a graph; ``silent`` are the layers whose heads show no scores."""
    assert graph.question is not None
    scores, cfg = influence(graph), graph.question.twin.cfg
    rule = RULES.get(graph.rule)
    return {
        "slug": slug,
        "scan": str(cfg.model_name or cfg.architecture),
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": "".join(tokens),
        "schema_version": 1,
        "node_threshold": 1.0,
        "info": {
            "description": f"Heads and neurons of an attention-only twin; links are in units of {graph.target}.",
            "generator": {"name": "allheads", "version": allheads.__version__},
        },
        "generation_settings": {
            "rule": graph.rule,
            "rule_answers": rule.answers if rule else "",
            "rule_misses": rule.misses if rule else "",
            "max_feature_nodes": len(graph.parts),
            "share_of_edge_weight_in_the_graph": graph.coverage,
            "replacement_score": scores.replacement,
            "completeness_score": scores.completeness,
            "probability": _PROBABILITIES[len(graph.question.metric.entries)],
            "layers_whose_heads_show_no_scores": silent,
            "allheads": {"version": OURS} | _rest(graph),
        },
    }


def _rest(graph: AttributionGraph) -> dict[str, Any]:
    """What of a graph stands nowhere else in the file."""
    return {
        "rule": graph.rule,
        "target": graph.target,
        "target_value": graph.target_value,
        "coverage": graph.coverage,
        "tokens": graph.tokens,
        "constants": next((asdict(node) for node in graph.nodes if node.kind == "C"), None),
        # With their places among all, which those through values keep.
        "edges": [[at, asdict(edge)] for at, edge in enumerate(graph.edges) if edge.side != "V"],
        "notes": graph.marks.notes,
    }
