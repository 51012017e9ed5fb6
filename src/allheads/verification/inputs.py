"""What a verification is run on: texts or token ids, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge
from allheads.models.compat import network_path
from allheads.models.observe import Inputs
from allheads.twin.prompt import Texts, token_rows

#: Texts, or the arguments of one run by name, or a list of these.
Runs = Texts | Inputs | Sequence[Inputs]


def input_runs(model: TransformerBridge, given: Runs) -> list[Inputs]:
    """The arguments of every run: one for each text, or as they are given.

    Raises `AllHeadsError` as `token_rows` does, for an encoder-decoder that is given no decoder input, and for a model
    that reads no text but is given some.
    """
    named = _named(given)
    if named:
        return [_arguments(model, item) for item in named]
    reads = getattr(model.original_model, "main_input_name", "input_ids")
    if reads != "input_ids":
        example = f"arguments by name, as in {{'{reads}': tensor}}"
        raise AllHeadsError(example, type(given).__name__, "This model does not read text.")
    _decoder_given(model, {})
    return [{"input": row} for row in token_rows(model, cast(Texts, given))]


def _named(given: Runs) -> list[Inputs]:
    items = [given] if isinstance(given, Mapping) else given if isinstance(given, (list, tuple)) else []
    return [item for item in items if isinstance(item, Mapping)]


def _arguments(model: TransformerBridge, given: Inputs) -> Inputs:
    _decoder_given(model, given)
    made = dict(given)
    for name in ("input", "decoder_input"):
        if name in made and not made[name].is_floating_point():
            rows = token_rows(model, made[name])
            made[name] = torch.cat(rows) if len({row.shape for row in rows}) == 1 else rows[0]
    return made


def _decoder_given(model: TransformerBridge, given: Inputs) -> None:
    encoder_decoder = getattr(getattr(model.original_model, "config", None), "is_encoder_decoder", False)
    if encoder_decoder and "decoder_input" not in given and "decoder_input_ids" not in given:
        remedy = "Pass {'input': ids, 'decoder_input': ids}."
        raise AllHeadsError("input for the decoder beside that of the encoder", "none", remedy)


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
