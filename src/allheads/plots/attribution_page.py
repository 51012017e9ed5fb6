"""write_attribution: what makes a token, as one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from allheads.attribution.attribution import Attribution
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.rules import RULES
from allheads.disk import checked_path, write_whole
from allheads.plots import web
from allheads.plots.contributions import attribution
from allheads.plots.graph_view import graph_picture
from allheads.plots.page import as_html, html_page, plot, table

#: Parts in the table.
_PARTS = 20


def write_attribution(found: Attribution, graph: AttributionGraph, path: str | Path) -> Path:
    """Write one self-contained HTML file about an attribution and its graph, and return its path.

    Raises `AllHeadsError` if the file cannot be written; nothing is left behind then.

    >>> import allheads as ah
    >>> found = ah.attribute(twin, "Mary and John", " Mary")
    >>> write_attribution(found, found.graph(budget=5), "page.html").name
    'page.html'
    """
    target = checked_path(path)
    pictures = {f"{by}s": plot(attribution(found, by)) for by in ("token", "head", "layer")}
    pictures["graph"] = "graph", graph_picture(graph)
    model = found.question.twin.cfg.model_name or "the model"
    rule = RULES.get(found.rule.name, found.rule)
    parts = [
        [part.label, f"{part.position} {found.tokens[part.position]!r}", f"{part.effect:+.4f}", f"{part.direct:+.4f}"]
        for part in found.top(_PARTS)
    ]
    inflow = graph.nodes[0].inflow["V"]
    fields = {
        "model": as_html(model),
        "rule": as_html(found.rule.name),
        "target": as_html(found.target.name),
        "value": f"{found.target_value:.4f}",
        "prompt": as_html("".join(found.tokens)),
        "answers": f"Asked: {as_html(rule.answers)}",
        "misses": f"Not seen: {as_html(rule.misses)}",
        "facts": table(["", "logits"], _facts(found)),
        "parts": table(["part", "token", "effect", "direct"], parts),
        "graph_text": f"{len(graph.parts)} parts, found backward from the target. They write {inflow.kept:+.3f} of its "
        f"{inflow.total:+.3f} themselves; {inflow.left_out:+.3f} is left out, {inflow.left_out_size:.3f} in absolute "
        "parts. Squares are heads, circles neurons, triangles tokens.",
    }
    title = f"{model}: {found.target.name}"
    write_whole(target, html_page(title, pictures, web.read("attribution.html"), fields))
    return target


def _facts(found: Attribution) -> list[list[str]]:
    constants = sum(value for value, _ in found.constants.values())
    rows = [["embeddings", f"{float(found.embeddings.sum()):+.4f}"]]
    if found.positions is not None:
        rows.append(["positions", f"{float(found.positions.sum()):+.4f}"])
    rows += [["constants", f"{constants:+.4f}"], ["not linear", f"{found.intercept:+.4f}"]]
    return [*rows, ["sum", f"{found.total:+.4f}"], ["completeness error, of 1", f"{found.completeness_error:.1e}"]]
