"""All neurons and ordinary heads over a corpus, in memory that does not grow with it.

1. The corpus is read once for its size, its digest and its most frequent tokens (`allheads.corpus.token_windows`).
2. Its windows are cut into batches, and batches into parts of ``every``. A part is counted from zero
   (`allheads.corpus.count_batch`), by one process.
3. The first process adds the parts in their order and writes a checkpoint after each round.

So the result is the same to the last bit whatever the number of processes, and however often it was killed and resumed,
where one batch gives the same bits twice: on processors with the same number of threads, yes; on GPUs, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from allheads.corpus import processes
from allheads.corpus.count_batch import Countable, count_batch
from allheads.corpus.running_statistics import RunningStatistics, position_groups, token_groups
from allheads.corpus.sweep_result import Sweep, require_same
from allheads.corpus.token_windows import Batch, Texts, batches, opening, survey, windows
from allheads.disk import checked_path, claimed, digest
from allheads.errors import AllHeadsError
from allheads.heads.alone import alone
from allheads.models.origin import TRANSPOSED, fingerprint, state
from allheads.progress import bar
from allheads.twin.twin import TwinBridge


@dataclass(frozen=True)
class SweepSettings:
    """How a corpus is cut into windows of ``context`` tokens, ``batch`` of them at a time; a part is ``every`` batches.

    A context of None is 128, or what the model has. Windows do not see each other, and their first positions do not
    count. A checkpoint is written after each part.
    ``like``: take the groups of tokens from this sweep, to merge the two.

    >>> SweepSettings(context=64, batch=4)
    SweepSettings(context=64, batch=4, every=16...
    """

    context: int | None = None
    batch: int = 8
    every: int = 16
    like: Sweep | None = None

    def window(self, twin: TwinBridge) -> int:
        """The context for this model. Raises `AllHeadsError` for sizes below 1 or beyond the model's."""
        least = 1 + max(1, len(opening(twin)))
        context = min(128, twin.cfg.n_ctx) if self.context is None else self.context
        if not least <= context <= twin.cfg.n_ctx:
            raise AllHeadsError(
                f"a context of {least} to n_ctx = {twin.cfg.n_ctx} tokens",
                str(context),
                f"Try {min(128, twin.cfg.n_ctx)}, which is the default.",
            )
        if self.batch < 1 or self.every < 1:
            got = f"{self.batch} and {self.every}"
            raise AllHeadsError("batch and every of at least 1", got, "The defaults are 8 and 16.")
        return context


def sweep(
    twin: TwinBridge,
    texts: Texts,
    settings: SweepSettings | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
) -> Sweep:
    """Count what every neuron and every ordinary head does over a corpus.

    Args:
        twin: from `ah.convert` or `ah.load`; a decoder beside an encoder reads the same texts.
        texts: strings, tensors of ids, or `allheads.corpus.token_windows.TextFiles`.
        settings: windows and batches, `SweepSettings`.
        out: a file for checkpoints and for the result.
        resume: go on from what ``out`` has, if it is there.

    Returns:
        The statistics, in every process.

    Raises:
        AllHeadsError: no such twin; no text, or ids outside the vocabulary; sizes below 1 or beyond n_ctx; ``out``
            is there already, is being written by another sweep, was made with other settings, another model or another
            corpus, or was damaged.

    >>> found = sweep(twin, ["Mary and John went to the store."])
    >>> found.neurons().shape
    (4096, 11)
    """
    settings = settings or SweepSettings()
    countable = Countable.of(twin)
    countable.require_positions()
    context = settings.window(twin)
    target = None if out is None else _target(out, resume)
    index, _ = processes.join()
    with nullcontext() if target is None or index else claimed(target), alone(twin, *twin.banks):
        corpus, counts = survey(twin, texts, context)
        groups = token_groups(counts) if settings.like is None else settings.like.groups
        about = _about(countable, corpus, replace(settings, context=context))
        checkpoint = _checkpoint(about, groups, target)
        # Nobody writes before all have read.
        processes.wait()
        total = checkpoint.statistics.to(twin.cfg.device)
        tables = groups.to(twin.cfg.device), position_groups(context).to(twin.cfg.device)

        def count(batch: Batch, part: RunningStatistics) -> None:
            count_batch(countable, batch, *tables, part)

        stream = batches(twin, windows(twin, texts, context), settings.batch)
        for done in _rounds(stream, checkpoint, total, count):
            if target is not None and index == 0:
                Sweep(about, groups, total, done).save(target)
    processes.share(total)
    return Sweep(about, groups, total.to("cpu"), about["parts"])


def _rounds(
    stream: Iterator[Batch],
    checkpoint: Sweep,
    total: RunningStatistics,
    count: Callable[[Batch, RunningStatistics], None],
) -> Iterator[int]:
    """Count what is left, a part for each process in a round; says after each round how many parts are done."""
    every, parts = checkpoint.settings["every"], checkpoint.settings["parts"]
    widths = [width for _, width in checkpoint.settings["stems"]]
    sizes = widths, total.attention.shape[1], total.open.device
    part = RunningStatistics.empty(*sizes)
    index, several = processes.join()
    steps = -(-checkpoint.settings["windows"] // checkpoint.settings["batch"])
    with bar("Sweep", total=steps, initial=min(steps, checkpoint.done * every), hidden=bool(index)) as shown:
        for number, members in groupby(enumerate(stream), lambda numbered: numbered[0] // every):
            if number < checkpoint.done:
                continue
            turn = (number - checkpoint.done) % several
            if turn == index:
                part = RunningStatistics.empty(*sizes)
                for _, batch in members:
                    count(batch, part)
                    shown.update()
            if turn == several - 1 or number == parts - 1:
                processes.gather(total, part, turn + 1)
                shown.update(min(steps, (number + 1) * every) - shown.n)
                yield number + 1


def _checkpoint(about: dict[str, Any], groups: torch.Tensor, target: Path | None) -> Sweep:
    """The sweep so far. Raises `AllHeadsError` if the file is one of something else."""
    if target is None or not target.exists():
        widths = [width for _, width in about["stems"]]
        return Sweep(about, groups, RunningStatistics.empty(widths, len(about["heads"])), 0)
    saved = Sweep.load(target)
    for name, value in about.items():
        require_same(name, value, saved.settings.get(name))
    if not torch.equal(saved.groups, groups):
        raise AllHeadsError("a sweep with the same groups of tokens", "others", "Sweep again, or name another file.")
    return saved


def _about(countable: Countable, corpus: dict[str, Any], settings: SweepSettings) -> dict[str, Any]:
    """All that the result depends on, and what its rows are, as JSON has it."""
    twin = countable.twin
    return {
        "model": str(twin.cfg.model_name),
        "weights": weights_digest(twin),
        "evaluation": sorted({bank.evaluation for bank in twin.banks}),
        "context": settings.context,
        "batch": settings.batch,
        "every": settings.every,
        **corpus,
        "parts": -(-corpus["windows"] // (settings.batch * settings.every)),
        "stems": [(site.location.stem, site.count) for site in countable.neurons],
        "heads": [label for layer in countable.labels for label in layer],
    }


def weights_digest(twin: TwinBridge) -> str:
    """One SHA-256 of all parameters of a twin; a `Sweep` has it in its settings."""
    # Buffers may depend on what was run before.
    weights = {name: tensor for name, tensor in state(twin).items() if isinstance(tensor, nn.Parameter)}
    return digest(*(f"{name} {fingerprint(tensor).removesuffix(TRANSPOSED)} " for name, tensor in weights.items()))


def _target(out: str | Path, resume: bool) -> Path:
    target = checked_path(out).resolve()
    if target.exists() and not resume:
        raise AllHeadsError("a new file, or resume=True (--resume)", f"{out}, which is there", "Choose one of them.")
    return target
