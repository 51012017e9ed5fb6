"""write_features: what a sweep has found about neurons, a file for each, as pages that show features fetch them.

The format is that of Neuronpedia and circuit-tracer: ``{folder}/{feature}.json``, where ``feature`` is
`allheads.attribution.neuronpedia.numbering.cantor` of layer and index, as in graphs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

from allheads.attribution.neuronpedia.numbering import Features
from allheads.corpus.run_sweep import weights_digest
from allheads.corpus.sweep_result import Sweep, require_same
from allheads.errors import AllHeadsError
from allheads.formats.feature_json import feature
from allheads.formats.new_folder import checked_folder, new_folder
from allheads.progress import bar
from allheads.twin.labels import Label
from allheads.twin.prompt import token_texts
from allheads.twin.twin import TwinBridge, require_twin
from allheads.twin.wiring import Wiring, read_wiring
from allheads.weights.top_k import chunks
from allheads.weights.vocabulary import write_logits

#: Tokens at either end of the logits.
LOGITS = 10


def write_features(
    twin: TwinBridge, sweep: Sweep, folder: str | Path, labels: Iterable[str | Label] | None = None
) -> Path:
    """Write a file for each neuron: its examples with all activations, their distribution, and its largest logits.

    Args:
        twin: from `ah.convert` or `ah.load`.
        sweep: a finished one of this twin, from `ah.corpus.sweep`.
        folder: a new one; it is there with all files, or not at all.
        labels: whole neurons (``L3.N812``); all of the sweep unless said.

    Returns:
        The folder.

    Raises:
        AllHeadsError: the sweep is not finished, of other weights, or has activations that are not finite; a label
            that is no whole neuron, or that the sweep has not; a folder that is there already or cannot be written.

    >>> import allheads as ah
    >>> sweep = ah.corpus.sweep(twin, ["Mary and John went to the store."])
    >>> folder = write_features(twin, sweep, "features", labels=["L3.N812", "L0.N5"])
    >>> sorted(path.name for path in folder.iterdir())
    ['20.json', '333332.json']
    """
    require_twin(twin)
    target = checked_folder(folder)
    if not sweep.finished:
        raise AllHeadsError("a finished sweep", "one that is not", "Sweep with resume=True first.")
    rows = _rows(sweep, labels)
    _require_finite(sweep, rows)
    require_same("weights", weights_digest(twin), sweep.settings["weights"])
    by_stem: dict[str, list[Label]] = defaultdict(list)
    for label in rows:
        by_stem[label.stem].append(label)
    text, numbers = _texts(twin), Features.of(twin)
    with new_folder(target) as scratch, bar("Features", total=len(rows)) as shown:
        for label, top, bottom in _with_logits(twin, by_stem):
            content = feature(sweep, label, rows[label], text) | {
                "layer": numbers.layer(label),
                "index": numbers.feature(label),
                "top_logits": [text(token) for token in top],
                "bottom_logits": [text(token) for token in bottom],
            }
            (scratch / f"{numbers.feature(label)}.json").write_text(json.dumps(content), encoding="utf-8")
            shown.update()
    return target


def _rows(sweep: Sweep, labels: Iterable[str | Label] | None) -> dict[Label, int]:
    """The rows of these neurons in the statistics. Raises `AllHeadsError` for those that the sweep has not."""
    stems: list[tuple[str, int]] = sweep.settings["stems"]
    every = (Label(stem, "N", index) for stem, width in stems for index in range(width))
    known = {label: row for row, label in enumerate(every)}
    if labels is None:
        return known
    wanted = [Label.of(label) for label in ([labels] if isinstance(labels, (str, Label)) else labels)]
    if not wanted:
        raise AllHeadsError("at least one neuron", "no labels", "Leave labels out for all neurons.")
    for label in wanted:
        if label not in known:
            last = f"{stems[-1][0]}.N{stems[-1][1] - 1}" if stems else "none"
            raise AllHeadsError(f"a whole neuron, up to {last}", str(label), "Layers count from 0.")
    return {label: known[label] for label in wanted}


def _require_finite(sweep: Sweep, rows: dict[Label, int]) -> None:
    extremes = torch.stack([sweep.statistics.lowest, sweep.statistics.highest]).isfinite().all(0)
    for label, row in rows.items():
        if not extremes[row]:
            raise AllHeadsError("activations that are finite", f"others of {label}", "Sweep a twin in float32.")


def _texts(twin: TwinBridge) -> Callable[[int], str]:
    """What a token says, looked up once for each."""
    return cache(lambda token: token_texts(twin, torch.tensor([[token]]))[0])


@torch.no_grad()
def _with_logits(twin: TwinBridge, by_stem: dict[str, list[Label]]) -> Iterator[tuple[Label, list[int], list[int]]]:
    """Each neuron with the tokens that it makes likelier, and less likely, the strongest first."""
    wiring = _wiring(twin)
    for labels in by_stem.values():
        for some in chunks(len(labels), twin.cfg.d_vocab_out):
            yield from zip(labels[some], *_extremes(wiring, labels[some]), strict=True)


def _wiring(twin: TwinBridge) -> Wiring | None:
    try:
        return read_wiring(twin)
    except AllHeadsError:  # a stream that cannot be followed: nothing is said of logits
        return None


def _extremes(wiring: Wiring | None, labels: Sequence[Label]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids with the largest and the smallest logits of each neuron; none where its stream does not end in logits."""
    none: list[list[int]] = [[] for _ in labels]
    if wiring is None:
        return none, none
    try:
        branch = wiring.branch(labels[0])
        assert branch.bank is not None
        W_O = branch.bank.weights().W_O[0, [label.index for label in labels]].detach()
        logits = write_logits(wiring, branch, W_O)
    except AllHeadsError:
        return none, none
    count = min(LOGITS, logits.shape[1])
    return logits.topk(count).indices.tolist(), logits.topk(count, largest=False).indices.tolist()
