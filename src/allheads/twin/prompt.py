"""Text to token ids and back, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TransformerBridge
from allheads.models.observe import Inputs
from allheads.twin.twin import TwinBridge, require_twin

#: Texts, or token ids ``[pos]`` or ``[batch pos]``.
Texts = str | Sequence[str] | Tensor | Sequence[Tensor]


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


def one_row(model: TransformerBridge, text: Texts) -> Int[Tensor, "1 pos"]:
    """The ids of one text, or of ids ``[pos]`` or ``[1 pos]``; raises `AllHeadsError` for several, as `token_rows`."""
    rows = token_rows(model, text)
    if len(rows) != 1:
        raise AllHeadsError("one text", f"{len(rows)}", "Pass one text at a time.")
    return rows[0]


def prompt_ids(twin: TwinBridge, text: Texts) -> Int[Tensor, "1 pos"]:
    """`one_row` for a twin of one stack of layers with one MLP each."""
    require_twin(twin).require_one_stack("read it linearly")
    return one_row(twin, text)


def one_prompt(model: TransformerBridge, given: Texts | Inputs) -> dict[str, Tensor]:
    """The arguments of one run of a bridge, by name: ``input``, and ``decoder_input`` beside an encoder.

    Raises `AllHeadsError` as `one_row` and `named_inputs` do.
    """
    if isinstance(given, Mapping):
        made = named_inputs(model, given)
        for name in ("input", "decoder_input"):
            if name in made and len(made[name]) != 1:
                raise AllHeadsError(f"one prompt as {name}", f"{len(made[name])} rows", "Pass one at a time.")
        return made
    if (reads := getattr(model.original_model, "main_input_name", "input_ids")) != "input_ids":
        example = "arguments by name, as in {'input': tensor}"
        raise AllHeadsError(example, type(given).__name__, f"This model reads {reads}, not text.")
    return named_inputs(model, {"input": one_row(model, given)})


def named_inputs(model: TransformerBridge, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arguments by name, checked; texts among them become ids.

    Raises `AllHeadsError` for an encoder-decoder that is given no decoder input, and as `token_rows` does.
    """
    encoder_decoder = getattr(getattr(model.original_model, "config", None), "is_encoder_decoder", False)
    if encoder_decoder and "decoder_input" not in given and "decoder_input_ids" not in given:
        remedy = "Pass {'input': ids, 'decoder_input': ids}."
        raise AllHeadsError("input for the decoder beside that of the encoder", "none", remedy)
    made = dict(given)
    for name in ("input", "decoder_input"):
        if name in made and not (isinstance(made[name], Tensor) and made[name].is_floating_point()):
            rows = token_rows(model, made[name])
            if len({row.shape for row in rows}) != 1:
                raise AllHeadsError(f"rows of one length as {name}", f"{len(rows)} of several", "Pass one at a time.")
            made[name] = torch.cat(rows)
    return made


def token_texts(model: TransformerBridge, ids: Int[Tensor, "1 pos"]) -> list[str]:
    """What each token says; its number, for a model without a tokenizer."""
    numbers = ids[0].tolist()
    return [str(i) for i in numbers] if model.tokenizer is None else [model.tokenizer.decode([i]) for i in numbers]


def one_token(model: TransformerBridge, token: object) -> tuple[int, str]:
    """The id of a token given by id or by text, and its name in a sentence.

    Raises `AllHeadsError` for text that is not one token, and for an id outside the vocabulary.
    """
    d_vocab = model.cfg.d_vocab_out
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < d_vocab:
            raise AllHeadsError(f"a token from 0 to {d_vocab - 1}", str(token), "Use the model's own tokenizer.")
        return token, repr(model.tokenizer.decode([token])) if model.tokenizer is not None else str(token)
    if not isinstance(token, str):
        raise AllHeadsError("a token, a pair of them, or weights", described(token), "Pass a string or an id.")
    if model.tokenizer is None:
        raise AllHeadsError("a token's id", f"{token!r}, for a model without a tokenizer", "Pass an integer.")
    ids = model.tokenizer(token, add_special_tokens=False).input_ids
    if len(ids) != 1:
        parts = ", ".join(repr(model.tokenizer.decode([part])) for part in ids) or "none"
        raise AllHeadsError("one token", f"{token!r}, which is {parts}", "Words inside a text begin with a space.")
    return ids[0], repr(token)


def position_in(length: int, position: int) -> int:
    """A position counted from the front. Raises `AllHeadsError` for one outside the prompt."""
    if not isinstance(position, int) or not -length <= position < length:
        raise AllHeadsError(f"a position from {-length} to {length - 1}", repr(position), "The last one is -1.")
    return position % length


def described(value: Any) -> str:
    """A value for an error: tensors by dtype and shape."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]


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
    raise AllHeadsError(
        "a string or integer ids [pos] or [batch pos]", described(item), "Tokenise with model.to_tokens."
    )


def _check(model: TransformerBridge, row: Tensor) -> None:
    length, n_ctx, d_vocab = row.shape[-1], model.cfg.n_ctx, model.cfg.d_vocab
    if length == 0:
        raise AllHeadsError("at least one token", "none", "Pass a longer text.")
    if length > n_ctx:
        raise AllHeadsError(f"at most n_ctx = {n_ctx} tokens", f"{length}", "Split the text.")
    low, high = int(row.min()), int(row.max())
    if low < 0 or high >= d_vocab:
        raise AllHeadsError(
            f"token ids from 0 to {d_vocab - 1}", f"ids from {low} to {high}", "Use the model's own tokenizer."
        )
