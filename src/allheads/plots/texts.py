"""The one text a picture is made of, and the names of its tokens in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jaxtyping import Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.bridge import TwinBridge
from allheads.proof.inputs import Texts, token_rows

_LONGEST = 18
_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


def one_text(twin: TwinBridge, tokens: Texts) -> Int[Tensor, "1 pos"]:
    """Token ids of a text or of ids ``[pos]`` or ``[1 pos]``; raises `AllHeadsError` for anything else."""
    if not isinstance(twin, TwinBridge):
        raise AllHeadsError("an attention-only twin", type(twin).__name__, "Make one with ah.convert(source).")
    rows = token_rows(twin, tokens)
    if len(rows) != 1:
        raise AllHeadsError("one text", f"{len(rows)}", "Draw one text at a time.")
    return rows[0]


def token_names(twin: TwinBridge, tokens: Int[Tensor, "1 pos"]) -> list[str]:
    """``position token`` for each token, all different, with white space made visible, escaped for plotly.

    A model without a tokenizer shows the ids.
    """
    ids = tokens[0].tolist()
    return shown_names([str(i) for i in ids] if twin.tokenizer is None else [twin.tokenizer.decode([i]) for i in ids])


def shown_names(words: Sequence[str], *, numbered: bool = True) -> list[str]:
    """Words with white space made visible, escaped for plotly, and with their positions: all different."""
    return [f"{position} {_shown(word)}" if numbered else _shown(word) for position, word in enumerate(words)]


def _shown(word: str) -> str:
    """
    >>> _shown(" a<b>")
    '·a&lt;b&gt;'
    """
    visible = "".join(_VISIBLE.get(c, c if c.isprintable() else "�") for c in word)
    short = visible if len(visible) <= _LONGEST else visible[: _LONGEST - 1] + "…"
    return escape(short, quote=False)
