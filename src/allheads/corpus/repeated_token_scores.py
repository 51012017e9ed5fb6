r"""What ordinary heads do on random tokens that come twice, where nothing but position and repetition can help.

A prompt is a row of distinct random tokens, then the same row again, behind a beginning-of-sequence token where the
model's tokenizer adds one. With pattern p, length L, and s the position where the first copy starts,

    induction  = mean over i < L of  p[s + L + i, s + i + 1]    the token that came after this one
    duplicate  = mean over i < L of  p[s + L + i, s + i]        this token, where it was first
    previous   = mean over q > 0 of  p[q, q - 1]                the token before
    copying    = P( logit of x_i from value i  >  logit of x_i from value j ),  i and j random positions, i != j

The first three are `allheads.corpus.head_roles` on these prompts. Copying is what a head would do if it attended there:
its own value at position i, written through W_O and the final norm's gain into the logits, is compared with its values
elsewhere: the chance is 1/2, a head that takes away what it attends to is below. Values are those of a run, not
``W_E W_V``: what the first layers make of a token is far from its embedding, so eigenvalues of ``W_E W_V W_O W_U``
(Elhage et al. 2021) say little of later layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from allheads.corpus.count_batch import Countable
from allheads.corpus.head_roles import ROLES, destinations, role_masks, role_sums
from allheads.corpus.token_windows import opening
from allheads.errors import AllHeadsError
from allheads.models.attention import read_attention
from allheads.models.norms import known_norm
from allheads.result import Result
from allheads.twin.capture import capturing
from allheads.twin.sites import Site
from allheads.twin.twin import TwinBridge

Kind = Literal["induction", "duplicate", "previous", "copying"]
KINDS: tuple[Kind, ...] = ("induction", "duplicate", "previous", "copying")


@dataclass(frozen=True, repr=False)
class HeadScores(Result):
    """Scores of all ordinary heads that read text, each in [0, 1]; see `allheads.corpus.repeated_token_scores`.

    Copying is nan outside of a decoder's own stack, and where values are not shown as ``W_O`` reads them. A row is as
    long as its layer has heads, and nan beyond.

    >>> head_scores(twin, length=16).to_dataframe().shape
    (24, 5)
    """

    labels: list[list[str]]
    induction: Float[Tensor, "layer head"]
    duplicate: Float[Tensor, "layer head"]
    previous: Float[Tensor, "layer head"]
    copying: Float[Tensor, "layer head"]

    def top(self, kind: Kind, k: int = 5) -> list[tuple[str, float]]:
        """The k heads with the highest scores. Raises `AllHeadsError` for an unknown kind."""
        if kind not in KINDS:
            raise AllHeadsError(f"a kind out of {', '.join(KINDS)}", repr(kind), "Choose one.")
        table = self.to_dataframe().nlargest(k, kind)
        return list(zip(table["label"], table[kind], strict=True))

    def facts(self) -> dict[str, Any]:
        """How many heads there are, and the best of each kind."""
        best: dict[str, Any] = {
            kind: " ".join(f"{label} {score:.2f}" for label, score in self.top(kind, 1)) for kind in KINDS
        }
        return {"heads": sum(map(len, self.labels)), **best}

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each head: ``label`` and its scores."""
        labels = [label for row in self.labels for label in row]
        there = torch.tensor([[n < len(row) for n in range(self.induction.shape[1])] for row in self.labels])
        return pd.DataFrame({"label": labels} | {kind: getattr(self, kind)[there] for kind in KINDS})


def head_scores(twin: TwinBridge, *, length: int | None = None, batch: int = 4, seed: int = 0) -> HeadScores:
    """Score all ordinary heads at once, from one run.

    Args:
        twin: from `ah.convert`; a decoder beside an encoder reads the same tokens.
        length: of a copy; a prompt is twice that, and its tokens are distinct. 64 if None, or as long as fits.
        batch: prompts.
        seed: of the tokens.

    Raises:
        AllHeadsError: no such twin, or a length or batch that does not fit it.

    >>> [label for label, score in head_scores(twin, length=16).top("previous", 1)]
    ['L...']
    """
    countable = Countable.of(twin)
    if not countable.heads:
        raise AllHeadsError(
            "heads that show their patterns on text", "none", "Look at its neurons with ah.corpus.sweep."
        )
    tokens = repeated_tokens(twin, length, batch, seed)
    masks = role_masks(tokens)
    counts = destinations(masks).double()
    # A head can be anything at the first position of all, where others rest.
    length = (tokens.shape[1] - (first := len(opening(twin)))) // 2
    once = slice(max(1, first), first + length)
    names = [f"{site.location.prefix}hook_{name}" for site in countable.heads for name in ("pattern", "v")]
    with torch.no_grad(), capturing(twin, [name for name in names if name in twin.hook_dict]) as activations:
        countable.run(tokens)
    roles = [role_sums(activations[name], masks) / counts[:, None] for name in names[::2]]
    readout = _readout(twin, tokens[:, once])
    copying = [
        _copying_of(twin, site, activations.get(name), readout, once)
        for site, name in zip(countable.heads, names[1::2], strict=True)
    ]
    return HeadScores(
        labels=countable.labels,
        copying=pad_sequence(copying, batch_first=True, padding_value=torch.nan).cpu(),
        **{
            name: pad_sequence(
                [row[ROLES.index(name)] for row in roles], batch_first=True, padding_value=torch.nan
            ).cpu()
            for name in ("induction", "duplicate", "previous")
        },
    )


def repeated_tokens(twin: TwinBridge, length: int | None, batch: int, seed: int) -> Int[Tensor, "batch pos"]:
    """Rows of distinct random tokens, each twice in a row; special tokens are left out.

    Raises `AllHeadsError` for a length or batch that does not fit the model.
    """
    begin = opening(twin)
    special = set() if twin.tokenizer is None else set(twin.tokenizer.all_special_ids)
    usable = torch.tensor([token for token in range(twin.cfg.d_vocab) if token not in special])
    longest = min(len(usable), (twin.cfg.n_ctx - len(begin)) // 2)
    length = min(64, longest) if length is None else length
    if not 2 <= length <= longest or batch < 1:
        raise AllHeadsError(f"a length of 2 to {longest}, and a batch", f"{length} and {batch}", "Change them.")
    draw = torch.Generator().manual_seed(seed)
    once = torch.stack([usable[torch.randperm(len(usable), generator=draw)[:length]] for _ in range(batch)])
    rows = torch.cat([torch.tensor(begin, dtype=torch.int64).expand(batch, -1), once, once], 1)
    return rows.to(twin.cfg.device)


def _copying_of(
    twin: TwinBridge, site: Site, value: Tensor | None, readout: Float[Tensor, "batch pos d_model"] | None, once: slice
) -> Float[Tensor, " head"]:
    """The copying scores of a layer; nan where its values do not go into the logits as they are shown."""
    unread = torch.full((site.count,), torch.nan, dtype=torch.float64)
    if site.location.name != f"blocks.{site.location.layer}.attn" or value is None or readout is None:
        return unread
    try:
        W_O = read_attention(twin, site.location.layer).W_O
    except AllHeadsError:
        return unread
    if value.ndim != 4 or len(W_O) % value.shape[2] or value.shape[3] != W_O.shape[1]:
        return unread
    return _copying(W_O, value[:, once], readout)


def _copying(
    W_O: Float[Tensor, "head d_head d_model"],
    value: Float[Tensor, "batch pos group d_head"],
    readout: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, " head"]:
    v = value.double().repeat_interleave(len(W_O) // value.shape[2], 2)
    logits = torch.einsum("bihd,hdm,bjm->bhij", v, W_O.double(), readout)
    # Down a column: one token's logit, from its own value and from all others.
    own = logits.diagonal(dim1=2, dim2=3)[:, :, None]
    wins = (own > logits).double() + 0.5 * (own == logits).double()
    n = logits.shape[2]
    return ((wins.sum((2, 3)) - 0.5 * n) / (n * (n - 1))).mean(0)


def _readout(twin: TwinBridge, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"] | None:
    """The stream's direction that makes the logit of each token, behind the final norm with its scale left out.

    None for a network without an unembedding.
    """
    if not hasattr(twin, "unembed"):
        return None
    W = twin.W_U.detach()[:, tokens.flatten()].double()
    end = getattr(twin, "ln_final", None)
    norm = None if end is None else known_norm(end.original_component, len(W))
    return (W if norm is None else norm.folded(W)).T.unflatten(0, tokens.shape)
