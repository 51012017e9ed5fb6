"""``allheads cost``: heads, operations and memory of a twin, from a model's shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from allheads.cli.console import AsJson, results

if TYPE_CHECKING:
    from rich.table import Table

    from allheads.twin.cost import Cost


def cost(
    models: Annotated[list[str] | None, typer.Argument(help="Names of models; all known ones if left out.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Certified error of the scalar activation.")] = None,
    n_ctx: Annotated[int | None, typer.Option(help="Context length; each model's own if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """What the attention-only twins of known models cost. No weights are needed."""
    from allheads.gates.approximation import DEFAULT_TOLERANCE
    from allheads.models.shapes import KNOWN
    from allheads.twin import cost as counting

    certified = DEFAULT_TOLERANCE if tolerance is None else tolerance
    costs = [counting.cost(name, tolerance=certified, n_ctx=n_ctx) for name in models or KNOWN]
    if as_json:
        typer.echo(json.dumps([cost.to_dict() for cost in costs]))
    else:
        results().print(_table(costs))


def _table(costs: list[Cost]) -> Table:
    from rich.table import Table

    table = Table(title="Attention-only twins: counts, operations per token, patterns of one sequence in float32")
    table.add_column("model")
    headers = (
        "context",
        "heads",
        "neuron heads",
        "bias tokens",
        "parameters",
        "written out",
        "GFLOPs/token",
        "slots",
        "literal",
        "self",
        "slots",
        "dense",
    )
    for header in headers:
        table.add_column(header, justify="right")
    for c in costs:
        table.add_row(
            c.model,
            f"{c.n_ctx:,}",
            f"{c.attention_heads:,}",
            f"{c.neuron_heads:,}",
            "+".join(map(str, c.bias_tokens))
            if len(set(c.bias_tokens)) > 1
            else f"{len(c.bias_tokens)} x {c.bias_tokens[0]}",
            f"{c.parameters / 1e9:.3g} B",
            f"{c.parameters_as_heads / 1e9:.3g} B",
            f"{c.flops_source / 1e9:.3g}",
            f"x {c.flops_slots / c.flops_source:.3f}",
            f"x {c.flops_literal / c.flops_source:.1f}",
            *(f"{size / 1e9:,.3g} GB" for size in (c.pattern_bytes_self, c.pattern_bytes_slots, c.pattern_bytes_dense)),
        )
    return table
