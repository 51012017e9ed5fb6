"""``allheads attribute``: what in a prompt, and which heads and neurons, make the next token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import allheads as ah
from allheads.cli.before_loading import check_model, check_rule, check_targets, check_text
from allheads.cli.console import (
    AsJson,
    DeviceOption,
    DtypeOption,
    ModelOption,
    PositionOption,
    RuleOption,
    load_twin,
    results,
    step,
)
from allheads.disk import checked_path

if TYPE_CHECKING:
    from allheads.attribution.attribution import Attribution


# More than five arguments, because typer makes an option of each.
def attribute(
    prompt: Annotated[str, typer.Argument(help="Text whose next token is asked about.")],
    target: Annotated[str, typer.Option(help="The token to explain, with its space: ' Mary'.")],
    versus: Annotated[str | None, typer.Option(help="A token it is compared with.")] = None,
    model: ModelOption = "smollm2-135m",
    rule: RuleOption = "half",
    position: PositionOption = -1,
    top: Annotated[int, typer.Option(min=1, help="How many heads and neurons are listed.")] = 12,
    report: Annotated[Path | None, typer.Option(help="Write a page with pictures and a graph here, as HTML.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="Heads and neurons in the page's graph.")] = 60,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Split the logit of a token, or a difference of two, over tokens, attention heads and neurons."""
    check_text(prompt)
    check_rule(rule)
    if report is not None:
        checked_path(report)
    check_model(model, device, dtype)
    check_targets(model, prompt, [target] if versus is None else [target, versus], position)
    twin = load_twin(model, device, dtype)
    with step("One forward and one backward pass"):
        tokens = target if versus is None else (target, versus)
        found = ah.attribute(twin, prompt, tokens, rule=rule, position=position)
    if report is not None:
        with step(f"Writing {report}"):
            flows = found.graph(budget=budget)
            ah.plots.write_attribution(found, flows, report)
    if as_json:
        typer.echo(json.dumps(attribution_facts(found, top)))
    else:
        _print(found, top)


def attribution_facts(found: Attribution, top: int) -> dict[str, Any]:
    """What `--json` prints, and what assistants are told."""
    return {
        "rule": found.rule.name,
        "target": found.target.name,
        "position": found.target.position,
        "target_value": found.target_value,
        "total": found.total,
        "intercept": found.intercept,
        "completeness_error": found.completeness_error,
        "tokens": [
            {"position": position, "token": token, "embedding": embedding}
            for position, (token, embedding) in enumerate(zip(found.tokens, found.embeddings.tolist(), strict=True))
        ],
        "top": found.to_dataframe(top).to_dict("records"),
    }


def _print(found: Attribution, top: int) -> None:
    from rich.table import Table

    console = results()
    console.print(
        f"{found.target.name} at position {found.target.position}: {found.target_value:.4f}. "
        f"Rule {found.rule.name}: {found.rule.answers}"
    )
    tokens = Table(title=f"Token embeddings, which sum to {float(found.embeddings.sum()):.4f}")
    for header in ("position", "token", "contribution"):
        tokens.add_column(header, justify="left" if header == "token" else "right")
    for position, (token, value) in enumerate(zip(found.tokens, found.embeddings.tolist(), strict=True)):
        tokens.add_row(str(position), repr(token), f"{value:+.4f}")
    console.print(tokens)
    heads = Table(title="Heads and neurons with the largest effects")
    for header in ("label", "position", "token", "effect", "direct"):
        heads.add_column(header, justify="left" if header in ("label", "token") else "right")
    for effect in found.top(top):
        row = (effect.label, str(effect.position), repr(found.tokens[effect.position]))
        heads.add_row(*row, f"{effect.effect:+.4f}", f"{effect.direct:+.4f}")
    console.print(heads)
    if found.rule.complete:
        console.print(f"Completeness error {found.completeness_error:.1e}. Misses: {found.rule.misses}")
    else:
        console.print(f"Not complete: contributions sum to {found.total:.4f}. Misses: {found.rule.misses}")
