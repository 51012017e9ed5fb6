"""Texts as windows of token ids: read as a stream, as often as needed, and never held.

A window is ``context`` tokens of one text, a beginning-of-sequence token in front where the model's tokenizer adds one.
The last window of a text may be shorter. A text in a file is tokenised some 64 kB of whole lines at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from allheads.disk import digest
from allheads.errors import AllHeadsError
from allheads.twin.prompt import described
from allheads.twin.twin import TwinBridge

#: Characters of a file that are read at a time; the line that is cut there is read to its end, if it is not longer.
PIECE = 2**16


@dataclass(frozen=True)
class TextFiles:
    r"""Text files as texts: a file each, or with ``lines`` a line each, empty ones left out.

    >>> _ = Path("model.txt").write_text("One line.\nAnother.\n")
    >>> list(TextFiles([Path("model.txt")], lines=True))
    [(0, 'One line.\n'), (1, 'Another.\n')]
    """

    paths: Sequence[Path]
    lines: bool = False

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Pieces of texts, with the number of the text that each belongs to; raises `AllHeadsError` while reading."""
        number = -1
        for path in self.paths:
            number += not self.lines
            try:
                with path.open(encoding="utf-8") as file:
                    while piece := file.readline() if self.lines else file.read(PIECE) + file.readline(PIECE):
                        if piece.strip() or not self.lines:
                            number += self.lines
                            yield number, piece
            except (OSError, UnicodeDecodeError) as error:
                raise AllHeadsError("a readable UTF-8 text file", f"{path} ({error})", "Check the path.") from error


#: Texts, or token ids ``[pos]`` without a beginning-of-sequence token; they are gone through more than once.
Texts = Sequence[str | Tensor] | TextFiles


@dataclass(frozen=True)
class Window:
    """Ids from one text, and how many of its tokens come before them."""

    text: int
    start: int
    ids: list[int]


@dataclass(frozen=True)
class Batch:
    """Windows side by side, padded on the right; ``real`` is what is no padding, ``first`` the offset in the text."""

    tokens: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    text: Int[Tensor, " batch"]
    first: Int[Tensor, " batch"]

    @property
    def counted(self) -> Bool[Tensor, "batch pos"]:
        """All positions but the first of each window."""
        return self.real & (torch.arange(self.real.shape[1], device=self.real.device) > 0)


def windows(twin: TwinBridge, texts: Texts, context: int) -> Iterator[Window]:
    """The windows of every text, in order.

    >>> [window.start for window in windows(twin, ["Mary and John went to the store."], 4)]
    [0, 4]
    """
    room = context - len(opening(twin))
    pieces = texts if isinstance(texts, TextFiles) else enumerate(texts)
    for text, group in groupby(pieces, key=itemgetter(0)):
        start, rest = 0, list[int]()
        for _, piece in group:
            rest += _ids(twin, piece)
            while len(rest) >= room:
                yield Window(text, start, rest[:room])
                start, rest = start + room, rest[room:]
        if rest:
            yield Window(text, start, rest)


def batches(twin: TwinBridge, stream: Iterable[Window], size: int) -> Iterator[Batch]:
    """Windows in batches, on the device of the twin."""
    begin, rest = opening(twin), iter(stream)
    while chosen := list(islice(rest, size)):
        rows = [torch.tensor(begin + window.ids) for window in chosen]
        real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
        tensors = (
            pad_sequence(rows, batch_first=True),
            real,
            torch.tensor([window.text for window in chosen]),
            torch.tensor([window.start - len(begin) for window in chosen]),
        )
        yield Batch(*(tensor.to(twin.cfg.device) for tensor in tensors))


def survey(twin: TwinBridge, texts: Texts, context: int) -> tuple[dict[str, str | int], Int[Tensor, " d_vocab"]]:
    """Read a corpus once, without running the network: its digest and its sizes, and how often each token occurs.

    Raises `AllHeadsError` for ids outside the vocabulary and for a corpus without a position that can be counted.
    """
    corpus, counts = "", torch.zeros(twin.cfg.d_vocab, dtype=torch.int64)
    count, last, longest = 0, -1, 0
    for window in windows(twin, texts, context):
        ids = torch.tensor(window.ids)
        if int(ids.min()) < 0 or int(ids.max()) >= len(counts):
            raise AllHeadsError(
                f"ids from 0 to {len(counts) - 1}",
                f"{int(ids.min())} to {int(ids.max())}",
                "Use the model's tokenizer.",
            )
        counts += torch.bincount(ids, minlength=len(counts))
        corpus = digest(
            corpus, f"{window.text} {window.start} ", ids.numpy().tobytes()
        )  # of what came before, and this
        count, last, longest = count + 1, window.text, max(longest, len(opening(twin)) + len(ids))
    if longest < 2:
        raise AllHeadsError("texts with a second token", "none", "A window's first position is left out.")
    return {"corpus": corpus, "texts": last + 1, "windows": count}, counts


def opening(twin: TwinBridge) -> list[int]:
    """What every window begins with: the beginning-of-sequence token where the model's tokenizer adds one.

    >>> opening(twin)
    []
    """
    adds = twin.tokenizer is not None and twin.cfg.default_prepend_bos and twin.tokenizer.bos_token_id is not None
    return [twin.tokenizer.bos_token_id] if adds else []


def _ids(twin: TwinBridge, piece: str | Tensor) -> list[int]:
    if isinstance(piece, Tensor):
        if piece.ndim != 1 or piece.is_floating_point():
            raise AllHeadsError("token ids [pos]", described(piece), "One text a tensor.")
        return piece.tolist()
    if twin.tokenizer is None:
        raise AllHeadsError("token ids", "text, for a model without a tokenizer", "Pass tensors of ids.")
    # Not verbose: pieces are longer than the context, and are cut into windows.
    return twin.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
