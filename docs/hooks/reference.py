"""The reference: a page for each namespace, whose entries mkdocstrings makes from the docstrings."""

from __future__ import annotations

from importlib import import_module

import allheads as ah

NAMESPACES = ("weights", "corpus", "formats", "gates", "pure", "plots")
#: Classes of results: they are returned, and not among the public names.
RESULTS = (
    "allheads.attribution.attribution.Attribution",
    "allheads.attribution.attribution.Contribution",
    "allheads.attribution.attribution_graph.AttributionGraph",
    "allheads.attribution.attribution_graph.Node",
    "allheads.attribution.attribution_graph.Edge",
    "allheads.attribution.attribute_pattern.PatternAttribution",
    "allheads.attribution.confirm.Confirmation",
    "allheads.attribution.similarity.Similarity",
    "allheads.verification.report.Report",
    "allheads.verification.report.Thresholds",
    "allheads.twin.cost.Cost",
    "allheads.twin.heads.Head",
    "allheads.plots.view.View",
    "allheads.plots.picture.Picture",
    "allheads.result.Result",
)


def pages() -> dict[str, str]:
    """Markdown by path."""
    made = {"reference/allheads.md": _page("allheads", [name for name in ah.__all__ if name not in NAMESPACES])}
    for name in NAMESPACES:
        namespace = getattr(ah, name)
        made[f"reference/{name}.md"] = _page(f"allheads.{name}", namespace.__all__)
    made["reference/results.md"] = _listed("Results", "What functions return.", RESULTS)
    return made


def home(package: str, name: str) -> str:
    """Where a public name is defined, without importing it."""
    where = import_module(package)._HOME[name]
    levels = len(where) - len(where.lstrip("."))
    base = ".".join(package.split(".")[: len(package.split(".")) - max(0, levels - 1)])
    return f"{base}.{where.lstrip('.')}.{name}"


def _page(package: str, names: list[str]) -> str:
    about = (import_module(package).__doc__ or "").strip().split("\n\n")[0]
    short = package.replace("allheads", "ah", 1)
    title = "allheads" if package == "allheads" else short
    return _listed(title, about, [home(package, name) for name in names], short)


def _listed(title: str, about: str, names: list[str] | tuple[str, ...], prefix: str = "") -> str:
    lines = [f"# {title}", "", " ".join(about.split()), ""]
    for name in names:
        shown = f"{prefix}.{name.rsplit('.', 1)[1]}" if prefix else name.rsplit(".", 1)[1]
        lines += [f"::: {name}", "    options:", f"      heading: {shown}", f"      toc_label: {shown}", ""]
    return "\n".join(lines)
