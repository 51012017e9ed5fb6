"""One token, by text or by id."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.twin.twin import TwinBridge


def one_token(twin: TwinBridge, token: object) -> tuple[int, str]:
    """The id of a token given by id or by text, and its name in a sentence.

    Raises `AllHeadsError` for text that is not one token, and for an id outside the vocabulary.
    """
    d_vocab = twin.cfg.d_vocab_out
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < d_vocab:
            raise AllHeadsError(f"a token from 0 to {d_vocab - 1}", str(token), "Use the model's own tokenizer.")
        return token, repr(twin.tokenizer.decode([token])) if twin.tokenizer is not None else str(token)
    if not isinstance(token, str):
        raise AllHeadsError("a token, a pair of them, or weights", described(token), "Pass a string or an id.")
    if twin.tokenizer is None:
        raise AllHeadsError("a token's id", f"{token!r}, for a model without a tokenizer", "Pass an integer.")
    ids = twin.tokenizer(token, add_special_tokens=False).input_ids
    if len(ids) != 1:
        parts = ", ".join(repr(twin.tokenizer.decode([each])) for each in ids) or "none"
        raise AllHeadsError("one token", f"{token!r}, which is {parts}", "Words inside a text begin with a space.")
    return ids[0], repr(token)


def described(value: Any) -> str:
    """A value for an error: tensors by dtype and shape."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]
