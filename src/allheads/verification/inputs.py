"""What a verification is run on: texts or token ids, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge
from allheads.models.compat import network_path
from allheads.models.observe import Inputs

Texts = str | Sequence[str] | Tensor | Sequence[Tensor]
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
        raise AllHeadsError(
            f"arguments by name, as in {{'{reads}': tensor}}",
            type(given).__name__,
            "This model does not read text.",
        )
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
        raise AllHeadsError(
            "input for the decoder beside that of the encoder",
            "none",
            "Pass {'input': ids, 'decoder_input': ids}.",
        )


def token_rows(model: TransformerBridge, texts: Texts) -> list[Int[Tensor, "1 pos"]]:
    """One row of token ids for each text, tokenised as the model's own tokenizer does.

    Raises `AllHeadsError` for empty text, more tokens than ``n_ctx``, ids outside the vocabulary, or another type.
    """
    if not isinstance(texts, (str, Tensor, Sequence)):
        raise AllHeadsError("texts or token ids", type(texts).__name__, "Pass a string, a tensor, or a list of them.")
    items = [texts] if isinstance(texts, (str, Tensor)) else list(texts)
    if not items:
        raise AllHeadsError("at least one text", "none", "Pass a string, a list of strings or token ids.")
    rows = [row for item in items for row in _rows(model, item)]
    for row in rows:
        _check(model, row)
    return rows


def _rows(model: TransformerBridge, item: object) -> list[Tensor]:
    if isinstance(item, str):
        if not item.strip():
            raise AllHeadsError("text", f"the empty string {item!r}", "Pass at least one word.")
        if model.tokenizer is None:
            raise AllHeadsError("token ids", "text, for a model without a tokenizer", "Pass a tensor of ids.")
        return [model.to_tokens(item, truncate=False)]
    if isinstance(item, Tensor) and item.ndim in (1, 2) and not item.is_floating_point():
        ids = item.to(model.cfg.device).long()
        return [ids[None]] if ids.ndim == 1 else list(ids[:, None])
    got = f"{type(item).__name__} of shape {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__
    raise AllHeadsError("a string or integer ids [pos] or [batch pos]", got, "Tokenise with model.to_tokens.")


def _check(model: TransformerBridge, row: Tensor) -> None:
    length, n_ctx, d_vocab = row.shape[-1], model.cfg.n_ctx, model.cfg.d_vocab
    if length == 0:
        raise AllHeadsError("at least one token", "none", "Pass a longer text.")
    if length > n_ctx:
        raise AllHeadsError(f"at most n_ctx = {n_ctx} tokens", f"{length}", "Split the text.")
    low, high = int(row.min()), int(row.max())
    if low < 0 or high >= d_vocab:
        raise AllHeadsError(
            f"token ids from 0 to {d_vocab - 1}",
            f"ids from {low} to {high}",
            "Use the model's own tokenizer.",
        )


def check_pair(source: TransformerBridge, twin: TransformerBridge) -> None:
    """Refuse a twin that was not made from this source: other sizes, or another embedding."""
    fields = ("architecture", "n_layers", "d_model", "d_mlp", "n_heads", "d_vocab")
    for field in fields:
        mine, theirs = getattr(source.cfg, field, None), getattr(twin.cfg, field, None)
        if mine != theirs:
            raise AllHeadsError(
                f"a twin of the source, with {field} = {mine}",
                f"{theirs}",
                "Verify a twin against its own source.",
            )
    mine, theirs = _first_weights(source), _first_weights(twin)
    shared = next(name for name in mine if name in theirs)
    if not torch.equal(mine[shared], theirs[shared]):
        raise AllHeadsError(
            f"a twin of the source, with the same weights in {shared}",
            "other ones",
            "Verify a twin against its own source.",
        )


def _first_weights(model: TransformerBridge) -> dict[str, Tensor]:
    """Parameters by their names in the network; embeddings come first."""
    return {
        network_path(name): parameter
        for name, parameter in model.original_model.named_parameters()
        if parameter.ndim > 1
    }
