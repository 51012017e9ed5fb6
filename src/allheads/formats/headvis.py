"""write_headvis: what heads attend to over a corpus, as the folder that HeadVis shows; in the same form for neurons.

1. The twin reads every window: sums for the metrics, and the largest attention in each window.
2. Windows are chosen for each head (`allheads.formats.attention_samples`).
3. The twin reads these windows again, and what is attended to in them is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from allheads.corpus.count_batch import Countable
from allheads.corpus.run_sweep import SweepSettings
from allheads.corpus.token_windows import Texts, survey
from allheads.formats.attention_scores import HEADS, NEURONS
from allheads.formats.attention_units import Units
from allheads.formats.headvis_json import config_file, head_file, scatter_rows
from allheads.formats.new_folder import checked_folder, new_folder
from allheads.formats.read_windows import BATCH, Corpus, measured, sampled
from allheads.heads.alone import alone
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge, require_twin


def write_headvis(
    twin: TwinBridge,
    texts: Texts,
    folder: str | Path,
    labels: Iterable[str | Label] | None = None,
    *,
    context: int | None = None,
) -> Path:
    """Write HeadVis' folder for ordinary heads, or for neurons with their openness in the place of attention.

    Args:
        twin: from `ah.convert` or `ah.load`.
        texts: strings, tensors of ids, or `ah.corpus.TextFiles`.
        folder: a new one; it is there with all files, or not at all.
        labels: ordinary heads (``L3.A5``), or whole neurons (``L3.N812``); all ordinary heads unless said.
        context: tokens in a window; 128, or what the model has, unless said.

    Returns:
        The folder: serve it as the page's ``data``.

    Raises:
        AllHeadsError: no such twin; unknown labels, heads beside neurons, or two with the same layer and index; no
            text, or ids outside the vocabulary; a context below 2 or beyond n_ctx; a folder that is there already or
            cannot be written.

    >>> folder = write_headvis(twin, ["Mary and John went to the store."], "heads")
    >>> sorted(path.name for path in folder.iterdir())
    ['attributions', 'config.json', 'heads', 'scatter_data.json', 'server_config.json']
    >>> len(list((folder / "heads").iterdir()))
    24
    """
    target = checked_folder(folder)
    units = Units.of(Countable.of(require_twin(twin)), labels)
    corpus = Corpus(twin, texts, SweepSettings(context).window(twin))
    about, _ = survey(twin, texts, corpus.context)
    measure = NEURONS if units.neurons else HEADS
    with new_folder(target) as scratch, alone(twin, *twin.banks):
        metrics, found = measured(units, corpus, measure, int(about["windows"]))
        samples = sampled(units, corpus, found)
        (scratch / "heads").mkdir()
        for row, label in enumerate(units.labels):
            name = f"heads/L{label.layer}H{label.index}.json"
            _write(scratch / name, head_file(samples[row], found[:, row]))
        _write(scratch / "scatter_data.json", scatter_rows(units, metrics))
        run = {"n_sequences": len(found), "seq_len": corpus.context, "batch_size": BATCH, "corpus": about["corpus"]}
        _write(scratch / "config.json", config_file(units, measure, corpus.name, run))
        _write(scratch / "server_config.json", {})
        (scratch / "attributions").mkdir()
        _write(scratch / "attributions" / "manifest.json", {})
    return target


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
