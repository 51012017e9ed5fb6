"""The two passes over a corpus that a HeadVis tree takes: measures of every window, and what is shown of some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allheads.corpus.token_windows import Batch, TextFiles, Texts, batches, windows
from allheads.formats.attention_samples import chosen_windows, largest, sparse
from allheads.formats.attention_scores import Measure, Windows
from allheads.formats.attention_units import Group, Units
from allheads.formats.headvis_json import Sample
from allheads.progress import bar
from allheads.twin.prompt import token_texts
from allheads.twin.twin import TwinBridge

#: Windows at a time.
BATCH = 8


@dataclass(frozen=True)
class Corpus:
    """Texts as windows of ``context`` tokens for a twin to read, as often as needed."""

    twin: TwinBridge
    texts: Texts
    context: int

    @property
    def name(self) -> str:
        """What the page calls it."""
        files = self.texts.paths if isinstance(self.texts, TextFiles) else []
        return " ".join(path.name for path in files) or f"{len(self.texts)} texts"  # type: ignore[arg-type]

    def batches(self) -> Iterator[tuple[Batch, list[int]]]:
        """Batches with the numbers of their windows; -1 for one of a single token, which shows nothing."""
        number = 0
        for batch in batches(self.twin, windows(self.twin, self.texts, self.context), BATCH):
            numbers = []
            for length in batch.real.sum(1).tolist():
                numbers.append(number if length > 1 else -1)
                number += length > 1
            if max(numbers) >= 0:
                yield batch, numbers


def measured(units: Units, corpus: Corpus, measure: Measure, count: int) -> tuple[dict[str, Tensor], np.ndarray]:
    """The metrics, and the largest attention ``[window unit]``."""
    sums: dict[str, Tensor] = {}
    counts, found = torch.zeros(1), list[Tensor]()
    for batch, numbers in bar("Attention", corpus.batches(), total=-(-count // BATCH)):
        rows = Windows.of(batch.tokens, batch.real)
        counts = counts + rows.counts
        real = torch.tensor(numbers) >= 0
        tops: dict[str, Tensor] = {}

        def look(group: Group, attention: Tensor, rows: Windows = rows, tops: dict[str, Tensor] = tops) -> None:
            more = measure.sums(attention, rows).cpu()
            sums[group.point] = sums[group.point] + more if group.point in sums else more
            tops[group.point] = largest(attention, rows.real).float().cpu()

        units.watch(batch, look)
        found.append(torch.cat([tops[group.point] for group in units.groups], 1)[real])
    every = torch.cat([sums[group.point] for group in units.groups], 1)
    return measure.metrics(every, counts), torch.cat(found).numpy()


def sampled(units: Units, corpus: Corpus, found: np.ndarray) -> list[list[Sample]]:
    """What each head attends to in its windows, in the order in which they are shown."""
    chosen = [chosen_windows(found[:, row], str(label)) for row, label in enumerate(units.labels)]
    wanted: dict[int, list[int]] = defaultdict(list)
    for row, windows_of in enumerate(chosen):
        for _, window in windows_of:
            wanted[window].append(row)
    kept: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    tokens: dict[int, list[str]] = {}
    for batch, numbers in bar("Windows", corpus.batches()):
        lengths = batch.real.sum(1).tolist()
        here = [(at, number) for at, number in enumerate(numbers) if number in wanted]
        for at, number in here:
            tokens[number] = token_texts(corpus.twin, batch.tokens[at : at + 1, : lengths[at]])

        def look(group: Group, attention: Tensor, here: Any = here, lengths: list[int] = lengths) -> None:
            for at, number in here:
                for row in wanted[number]:
                    if group.rows.start <= row < group.rows.stop:
                        cut = (slice(lengths[at]),) * (attention.ndim - 2)
                        kept[row, number] = sparse(attention[at, row - group.rows.start][cut])

        if here:
            units.watch(batch, look)
    return [
        [
            Sample(interval, window, tokens[window], *kept[row, window], float(found[window, row]))
            for interval, window in windows_of
        ]
        for row, windows_of in enumerate(chosen)
    ]
