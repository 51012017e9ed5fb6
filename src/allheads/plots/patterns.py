"""Attention patterns: those of ordinary heads over tokens, those of neuron heads over their slots."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TwinBridge
from allheads.plots.style import heat_map
from allheads.plots.texts import one_text, token_names
from allheads.proof.inputs import Texts
from allheads.twin.heads import head
from allheads.twin.labels import Label


def attention(twin: TwinBridge, tokens: Texts, label: str | Label = "L0.A0") -> go.Figure:
    """The attention pattern of one head on one text.

    An ordinary head, ``L3.A5``: tokens that look (rows) at tokens looked at (columns). A neuron head,
    ``L3.N812.0``: tokens (rows) at the slots it may attend to (columns), itself and the bias tokens.

    Raises `AllHeadsError` for a label that does not name one head, or a text the twin cannot read.
    """
    row = one_text(twin, tokens)
    named = head(twin, label)
    if len(named) != 1:
        raise AllHeadsError("one head", f"{label} with {len(named)}", f"Name one of them: {named[0].label}.")
    wanted, names = named[0], token_names(twin, row)
    if wanted.label.kind == "A":
        pattern = ordinary_patterns(twin, row, [wanted.label.layer])[0][wanted.number]
        return pattern_map(pattern, names, str(label))
    slots = 1 + twin.banks[wanted.label.layer].gates.bias_tokens[wanted.label.part or 0]
    pattern = read(twin, row, [f"{wanted.hook_prefix}hook_pattern"])[0][0, wanted.number, :, :slots]
    columns = ["self", *(f"bias {slot}" for slot in range(1, slots))]
    drawn = heat_map(pattern, str(label), columns=("slot", columns), rows=("token", names), value="weight")
    return drawn.update_yaxes(autorange="reversed")


def pattern_map(pattern: Float[Tensor, "query key"], names: Sequence[str], title: str) -> go.Figure:
    """One pattern, first token at the top."""
    drawn = heat_map(pattern, title, columns=("looked at", names), rows=("looks", names), value="weight")
    return drawn.update_yaxes(autorange="reversed")


def ordinary_patterns(
    twin: TwinBridge, tokens: Int[Tensor, "1 pos"], layers: Sequence[int]
) -> list[Float[Tensor, "head query key"]]:
    """The patterns of all ordinary heads in these layers."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    return [pattern[0] for pattern in read(twin, tokens, names)]


def read(twin: TwinBridge, tokens: Int[Tensor, "1 pos"], names: Sequence[str]) -> list[Tensor]:
    """Activations by name, from one run, in float32 or better, on the CPU; all exist and are finite."""
    with torch.no_grad():
        _, cache = twin.run_with_cache(tokens, names_filter=list(names), return_cache_object=False)
    missing = [name for name in names if name not in cache]
    if missing:
        raise AllHeadsError(f"a twin with {missing[0]}", "none", "Pictures need this hook point of the model.")
    broken = [name for name in names if not cache[name].isfinite().all()]
    if broken:
        raise AllHeadsError("finite activations", f"NaN or infinity at {broken[0]}", "Run ah.verify on the twin.")
    return [cache[name].cpu().to(torch.promote_types(cache[name].dtype, torch.float32)) for name in names]
