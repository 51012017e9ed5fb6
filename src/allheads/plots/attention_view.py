"""attention: every head's pattern in one view, ordinary heads and neurons' heads alike."""

from __future__ import annotations

from collections.abc import Iterable

from allheads.plots.pattern_sources import Source, Text, read_patterns
from allheads.plots.view import View
from allheads.twin.labels import Label


def attention(
    source: Source,
    tokens: Text | None = None,
    *,
    decoder: Text | None = None,
    heads: str | Label | Iterable[str | Label] | None = None,
    layers: Iterable[int] | None = None,
) -> View:
    r"""A grid of heads, one of them large, and the tokens: hover one to see where it looks and what looks at it.

    ``pattern[i, j]`` is the weight with which the token at i attends to the one at j; rows sum to 1. What is shown are
    whole 255ths of it, and nothing where a long text's weight is below 0.005: no further than 0.005 from the truth, and
    the view says how far.

    Args:
        source: a model (a twin or any TransformerLens bridge), an `ActivationCache` or another mapping with
            ``hook_pattern`` in it, one tensor ``[head row column]``, or a list of these, a layer each.
        tokens: what the model reads, as text or ids, or arguments by name, ``{"input": image}``; for a cache or tensors
            the tokens' names, numbers if None.
        decoder: the same for the decoder of an encoder-decoder: the rows of its cross-attention.
        heads: labels: ``"L3.A5"``, and in a twin ``"L3.N812"`` for a neuron's heads over their slots. All ordinary
            heads that run and show their patterns if None.
        layers: only heads in these.

    Returns:
        A `View`: it shows itself in a notebook, and can be saved. Click or Enter holds a token, arrow keys move, a
        heading's link such as ``#L3.A5`` opens that head.

    Raises:
        AllHeadsError: an unknown label, no head at all, more or fewer names than tokens, weights that are not finite,
            or more than 4,096 tokens or 100 MB.

    Warns:
        UserWarning: rows that do not sum to 1, with the largest deviation.

    >>> import torch
    >>> view = attention(torch.eye(3).expand(2, 3, 3), ["a", "b", "c"])
    >>> [head["label"] for head in view.data["heads"]]
    ['L0.A0', 'L0.A1']
    """
    found = read_patterns(source, tokens, decoder, heads, layers)
    count = len(found.heads)
    title = found.heads[0]["label"] if count == 1 else f"Attention of {count} heads"
    return View("attention", found.to_dict(), title, height=760)
