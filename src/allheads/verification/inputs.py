"""What a verification is run on: texts or token ids, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge
from allheads.models.compat import network_path
from allheads.models.observe import Inputs
from allheads.twin.prompt import Texts, named_inputs, one_prompt, token_rows

#: Texts, or the arguments of one run by name, or a list of these.
Runs = Texts | Inputs | Sequence[Inputs]


def input_runs(model: TransformerBridge, given: Runs) -> list[Inputs]:
    """The arguments of every run: one for each text, or as they are given.

    Raises `AllHeadsError` as `token_rows` does, for an encoder-decoder that is given no decoder input, and for a model
    that reads no text but is given some.
    """
    named = _named(given)
    if named:
        return [named_inputs(model, item) for item in named]
    return [one_prompt(model, item) for item in _texts(model, cast(Texts, given))]


def _named(given: Runs) -> list[Inputs]:
    items = [given] if isinstance(given, Mapping) else given if isinstance(given, (list, tuple)) else []
    return [item for item in items if isinstance(item, Mapping)]


def _texts(model: TransformerBridge, given: Texts) -> Sequence[Any]:
    """One text, or row of ids, at a time; for a model that reads something else, whatever it was given."""
    reads = getattr(model.original_model, "main_input_name", "input_ids")
    return token_rows(model, given) if reads == "input_ids" else [given]


def check_pair(source: TransformerBridge, twin: TransformerBridge) -> None:
    """Refuse a twin that was not made from this source: other sizes, another dtype, or another embedding."""
    remedy = "Verify a twin against its own source."
    for field in ("architecture", "n_layers", "d_model", "d_mlp", "n_heads", "d_vocab"):
        mine, theirs = getattr(source.cfg, field, None), getattr(twin.cfg, field, None)
        if mine != theirs:
            raise AllHeadsError(f"a twin of the source, with {field} = {mine}", f"{theirs}", remedy)
    mine, theirs = _first_weights(source), _first_weights(twin)
    shared = next((name for name in mine if name in theirs), None)
    if shared is None:
        raise AllHeadsError("a twin of the source, with parameters of the same names", "none", remedy)
    kinds = [str(weights[shared].dtype).removeprefix("torch.") for weights in (mine, theirs)]
    if kinds[0] != kinds[1]:
        raise AllHeadsError(f"a twin of the source, in {kinds[0]}", kinds[1], "Convert in the dtype of the source.")
    if not torch.equal(mine[shared], theirs[shared]):
        raise AllHeadsError(f"a twin of the source, with the same weights in {shared}", "other ones", remedy)


def _first_weights(model: TransformerBridge) -> dict[str, Tensor]:
    """Parameters by their names in the network; embeddings come first."""
    return {
        network_path(name): parameter
        for name, parameter in model.original_model.named_parameters()
        if parameter.ndim > 1
    }
