"""The one text a picture is made of, and the names of its tokens in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from allheads.errors import AllHeadsError
from allheads.twin.prompt import Texts, token_rows
from allheads.twin.twin import TwinBridge, require_twin

_LONGEST = 18
_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


def one_text(twin: TwinBridge, tokens: Texts) -> Int[Tensor, "1 pos"]:
    """Token ids of a text or of ids ``[pos]`` or ``[1 pos]``; raises `AllHeadsError` for anything else."""
    require_twin(twin)
    return one_row(twin, tokens)


def one_row(model: TransformerBridge, tokens: Texts) -> Int[Tensor, "1 pos"]:
    """`one_text` for any model."""
    rows = token_rows(model, tokens)
    if len(rows) != 1:
        raise AllHeadsError("one text", f"{len(rows)}", "Draw one text at a time.")
    return rows[0]


def words(model: TransformerBridge, tokens: Int[Tensor, "1 pos"]) -> list[str]:
    """What each token says; its id, for a model without a tokenizer."""
    ids = tokens[0].tolist()
    return [str(i) for i in ids] if model.tokenizer is None else [model.tokenizer.decode([i]) for i in ids]


def token_names(twin: TwinBridge, tokens: Int[Tensor, "1 pos"]) -> list[str]:
    """``position token`` for each token, all different, with white space made visible, escaped for plotly."""
    return shown_names(words(twin, tokens))


def shown_names(words: Sequence[str], *, numbered: bool = True) -> list[str]:
    """Words with white space made visible, escaped for plotly, and with their positions: all different."""
    shown = [escape(visible(word), quote=False) for word in words]
    return [f"{position} {name}" for position, name in enumerate(shown)] if numbered else shown


def visible(word: str) -> str:
    """A word with its white space made visible, cut where it is long.

    >>> visible(" a<b>")
    '·a<b>'
    """
    shown = "".join(_VISIBLE.get(c, c if c.isprintable() else "�") for c in word)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
