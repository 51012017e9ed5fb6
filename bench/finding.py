"""Heads and neurons of SmolLM2-135M by what they do: the tables of docs/finding.md. 2 threads, a few minutes.

``python bench/finding.py docs/finding.md`` puts them between the document's markers. The corpus is every sixth topic of
the documentation that ships with Python.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import allheads as ah
from allheads.cli.documents import put
from allheads.corpus.repeated_token_scores import KINDS, repeated_tokens

TOP, ABLATED, LENGTH = 5, 12, 48


def main() -> None:
    torch.set_num_threads(2)
    twin = ah.convert(ah.load())
    scores = ah.corpus.head_scores(twin)
    topics = sorted(pydoc_data.topics.topics)[::6]
    started = time.perf_counter()
    swept = ah.corpus.sweep(twin, [pydoc_data.topics.topics[name] for name in topics])
    seconds = time.perf_counter() - started
    tables = {
        "finding:scores": scores_table(scores),
        "finding:ablation": ablation_table(twin, scores),
        "finding:heads": roles_table(swept),
        "finding:neurons": neurons_table(twin, swept),
    }
    if len(sys.argv) > 1:
        put(Path(sys.argv[1]), tables)
    figures = {
        "positions": swept.statistics.positions,
        "seconds": round(seconds, 1),
        "positions_per_second": round(swept.statistics.positions / seconds),
        "file_megabytes": round(sum(each.nbytes for each in swept.statistics.tensors().values()) / 1e6),
    }
    print(json.dumps(figures, indent=2))


def scores_table(scores: ah.corpus.HeadScores) -> str:
    rows = [[f"{label} {value:.2f}" for label, value in scores.top(kind, TOP)] for kind in KINDS]
    return _table(KINDS, list(zip(*rows, strict=True)))


def ablation_table(twin: ah.TwinBridge, scores: ah.corpus.HeadScores) -> str:
    """Loss and accuracy on the second copy of random tokens."""
    tokens = repeated_tokens(twin, LENGTH, 2, 1)
    found = [label for label, _ in scores.top("induction", ABLATED)]
    others = [label for row in scores.labels for label in row if label not in found]
    draw = torch.Generator().manual_seed(0)
    chosen = {"nothing": [], f"the {ABLATED} best induction heads": found}
    for number in range(3):
        picked = torch.randperm(len(others), generator=draw)[:ABLATED].tolist()
        chosen[f"{ABLATED} others at random ({number})"] = [others[n] for n in picked]
    rows = []
    for name, labels in chosen.items():
        with torch.no_grad(), ah.ablate(twin, labels):
            logits = twin(tokens)[:, LENGTH:-1]
        asked = tokens[:, LENGTH + 1 :]
        loss = F.cross_entropy(logits.flatten(0, 1), asked.flatten())
        rows.append((name, f"{float(loss):.2f}", f"{float((logits.argmax(-1) == asked).double().mean()):.2f}"))
    return _table(("ablated", "loss", "accuracy"), rows)


def roles_table(swept: ah.corpus.Sweep) -> str:
    heads = swept.heads()
    names = list(heads.columns[1:-1])
    best = [heads.nlargest(TOP, name) for name in names]
    rows = [
        [f"{top['label'].iloc[n]} {top[name].iloc[n]:.2f}" for top, name in zip(best, names, strict=True)]
        for n in range(TOP)
    ]
    return _table(names, [*rows, [f"median {heads[name].median():.2f}" for name in names]])


def neurons_table(twin: ah.TwinBridge, swept: ah.corpus.Sweep) -> str:
    neurons = swept.neurons()
    counts = [
        ("dead", int((neurons["state"] == "dead").sum())),
        ("always open", int((neurons["state"] == "always").sum())),
        ("token explains more than half", int((neurons["token"] > 0.5).sum())),
        ("position explains more than half", int((neurons["position"] > 0.5).sum())),
    ]
    first = _table(("neurons", f"of {len(neurons):,}"), [(name, str(count)) for name, count in counts])
    rows = []
    for by in ("token", "position"):
        for row in neurons.nlargest(3, by).to_dict("records"):
            shown = [twin.tokenizer.decode(each.tokens[each.at]) for each in swept.of(row["label"])["examples"]]
            words = " ".join(f"`{word.strip() or repr(word)}`" for word in shown)
            figures = [f"{row[name]:.2f}" for name in ("token", "position", "open", "mean", "std")]
            rows.append((row["label"], *figures, words))
    head = ("", "token", "position", "open", "mean", "std", "tokens where it is largest")
    return f"{first}\n\n{_table(head, rows)}"


def _table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
