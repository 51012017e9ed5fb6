"""The card of a saved twin: what it is, how to load it, and its figures, as hubs of models show it."""

from __future__ import annotations

import re
from pathlib import Path

from allheads.errors import printable
from allheads.models.names import hub_id
from allheads.store.record import CARD, FILE, Record
from allheads.twin.twin import TwinBridge

_TAGS = ("allheads", "attention-only", "interpretability")


def write_card(twin: TwinBridge, record: Record, folder: Path) -> None:
    """Write ``README.md``: YAML that hubs read, and Markdown that people do."""
    base = hub_id(record.source.name) if record.source.name else None
    title = base or _plain(record.source.model_name)
    front = ["library_name: allheads", *([f"base_model: {base}"] if base else []), "tags:", *(f"- {t}" for t in _TAGS)]
    lines = ["---", *front, "---", "", f"# {title}, as attention only", "", *_about(), "", *_loading(record, base), ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in _figures(twin, record).items())]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _about() -> list[str]:
    return [
        "The attention-only twin of a pretrained model: every MLP neuron is computed by attention heads that attend to",
        "their own token and to constant bias tokens, within a certified error. Nothing was trained. Heads and neurons",
        "can be watched, attributed and edited by label: `L3.A5` is a head, `L3.N812` a neuron.",
    ]


def _loading(record: Record, base: str | None) -> list[str]:
    """How to load it, and what has to be there."""
    lines = [
        "```python",
        "import allheads as ah",
        "",
        'twin = ah.load("this folder, or its name on the hub")',
        "```",
        "",
    ]
    if record.standalone:
        return [*lines, "The folder has all weights, and needs nothing else."]
    at = f" at revision `{record.source.revision}`" if record.source.revision else ""
    where = f"`{base}`{at}" if base else f"`{_plain(record.source.model_name)}`"
    given = f'`ah.load(..., source=ah.load("{base}"))`' if base else "`ah.load(..., source=model)`"
    return [
        *lines,
        f"It has no weights of its own but those that were edited: its source, {where}, has to be on this machine,",
        f"or is given, {given}. `{FILE}` has the SHA-256 of every tensor of it, and each is compared.",
    ]


def _figures(twin: TwinBridge, record: Record) -> dict[str, str]:
    """What there is to count."""
    edited = [layer.location.stem for layer in twin.layers if layer.bank.edited is not None]
    return {
        "architecture": f"`{_plain(record.source.architecture)}`",
        "ordinary heads": f"{sum(layer.n_heads for layer in twin.index.attention.values()):,}",
        "neurons": f"{sum(bank.d_mlp for bank in twin.banks):,}",
        "heads of neurons": f"{sum(bank.d_mlp * bank.gates.heads for bank in twin.banks):,}",
        "largest certified error of a gate": f"{max(bank.gates.max_error for bank in twin.banks):.1e}",
        "dtype": f"`{record.source.dtype}`",
        "edited layers": ", ".join(edited) or "none",
    }


def _plain(name: str) -> str:
    """A name that is no markup."""
    return re.sub(r"[`<>\[\]|]", "'", printable(name)).replace("\n", " ")
