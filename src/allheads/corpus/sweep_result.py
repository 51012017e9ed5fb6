"""What a sweep has found so far: tables of neurons and heads, a file, and sums of two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from allheads.corpus import checkpoint
from allheads.corpus.head_roles import ROLES
from allheads.corpus.running_statistics import BEFORE, FREQUENT, RunningStatistics
from allheads.corpus.variance import explained, spread
from allheads.disk import named_path
from allheads.errors import AllHeadsError
from allheads.result import Result
from allheads.twin.labels import Label


@dataclass(frozen=True)
class Example:
    """A large activation: at token ``offset`` of text ``text``, which is ``tokens[at]``.

    ``tokens`` are some of its window on both sides, ``activations`` what the neuron's activation is at each of them:
    0 at the first of a window, which does not count.
    """

    value: float
    text: int
    offset: int
    tokens: list[int]
    activations: list[float]
    at: int


@dataclass(frozen=True, repr=False)
class Sweep(Result):
    """Statistics of all neurons and ordinary heads over a corpus, or over what of it is ``done``.

    ``settings`` say what of: model, weights, corpus, windows. ``groups`` is the group of every token.

    >>> import allheads as ah
    >>> sweep = ah.corpus.sweep(twin, ["Mary and John went to the store."])
    >>> sweep.finished, Sweep.load(sweep.save("sweep.safetensors")).done == sweep.done
    (True, True)
    """

    settings: dict[str, Any]
    groups: Int[Tensor, " d_vocab"]
    statistics: RunningStatistics
    done: int

    @property
    def finished(self) -> bool:
        """Is the corpus at its end?"""
        return self.done == self.settings["parts"]

    def facts(self) -> dict[str, Any]:
        """The model, the corpus, and how far the sweep has come."""
        return {
            "model": self.settings["model"],
            "texts": self.settings["texts"],
            "windows": self.settings["windows"],
            "positions": self.statistics.positions,
            "heads": len(self.settings["heads"]),
            "neurons": sum(self._widths),
            "finished": self.finished,
        }

    def to_dataframe(self) -> pd.DataFrame:
        """`neurons`."""
        return self.neurons()

    def neurons(self) -> pd.DataFrame:
        """A row for each neuron.

        ``chosen`` is how often the router has chosen its expert, in [0, 1], 1 outside of mixtures; ``open`` how often
        its preactivation is positive there: its gate then passes more than half. ``state`` is ``dead`` if it never is,
        ``always`` if it always is. ``mean`` and ``std`` are of its activation; ``token``
        and ``position`` the shares of variance explained, see `allheads.corpus.variance`; ``largest`` the largest
        activation by size, at token ``offset`` of ``text``.
        """
        statistics, n = self.statistics, self.statistics.positions
        chosen = statistics.chosen.sum(0).repeat_interleave(torch.tensor(self._widths))
        share = statistics.open.double() / chosen.clamp_min(1)
        mean = statistics.token_sums.sum(0) / max(n, 1)
        state = [_STATES.get(each, "") if n else "" for each in share.tolist()]
        return pd.DataFrame(
            {
                "label": self._neurons(),
                "chosen": chosen.double() / max(n, 1),
                "open": share,
                "state": state,
                "mean": mean,
                "std": (spread(n, mean, statistics.squares) / max(n - 1, 1)).sqrt(),
                "token": explained(statistics.token_counts, statistics.token_sums, statistics.squares),
                "position": explained(statistics.position_counts, statistics.position_sums, statistics.squares),
                "largest": statistics.example_values[:, 0],
                "text": statistics.example_texts[:, 0],
                "offset": statistics.example_offsets[:, 0],
            }
        )

    def experts(self, k: int = 5) -> pd.DataFrame:
        """Which tokens the router sends to each expert: a row for each of the k that it sends there most often.

        ``id`` is the token, ``share`` how many of its positions choose the expert, in [0, 1], out of ``count``;
        ``chosen`` the same for all tokens. Only the most frequent tokens are counted one by one. Empty outside of
        mixtures.

        >>> import allheads as ah
        >>> len(ah.corpus.sweep(twin, ["Mary and John"]).experts(k=3))  # no mixture
        0
        """
        statistics, rows = self.statistics, []
        alone = (self.groups < FREQUENT).nonzero().flatten()
        counts = statistics.token_counts[self.groups[alone]]
        alone, counts = alone[counts > 0], counts[counts > 0]
        for sublayer, (stem, _) in enumerate(self.settings["stems"]):
            if ".M" not in stem:
                continue
            chosen = statistics.chosen[:, sublayer]
            shares = chosen[self.groups[alone]].double() / counts
            for at in sorted(range(len(alone)), key=lambda at: (-shares[at], -counts[at]))[:k]:
                all_tokens = int(chosen.sum()) / max(statistics.positions, 1)
                rows.append((stem, all_tokens, int(alone[at]), float(shares[at]), int(counts[at])))
        return pd.DataFrame(rows, columns=["expert", "chosen", "id", "share", "count"])

    def heads(self) -> pd.DataFrame:
        """A row for each ordinary head: mean attention in each role, in [0, 1], and mean entropy in nats.

        For the roles see `allheads.corpus.head_roles`; NaN where no position has one.
        """
        columns = self.statistics.attention / self.statistics.destinations.double()[:, None]
        names = [*ROLES, "entropy"]
        return pd.DataFrame({"label": self.settings["heads"]} | dict(zip(names, columns.numpy(), strict=True)))

    def of(self, label: str) -> dict[str, Any]:
        """Its row by name; for a neuron also its ``examples``.

        Raises `AllHeadsError` for an unknown label.

        >>> import allheads as ah
        >>> sweep = ah.corpus.sweep(twin, ["Mary and John went to the store."])
        >>> 0 <= sweep.of("L3.N812")["open"] <= 1
        True
        """
        kind = Label.parse(label).kind
        table = self.heads() if kind != "N" else self.neurons()
        rows = table.index[table["label"] == label]
        if not len(rows):
            last = table["label"].iloc[-1]
            raise AllHeadsError(f"an ordinary head or a whole neuron, up to {last}", label, "Layers count from 0.")
        row = table.loc[rows[0]].to_dict()
        return row if kind != "N" else row | {"examples": self.examples(int(rows[0]))}

    def examples(self, neuron: int) -> list[Example]:
        """The largest activations of the neuron in this row, each from another window."""
        rows = [each[neuron].tolist() for each in self.statistics.examples]
        return [_example(*row) for row in zip(*rows, strict=True) if row[1] >= 0]

    def merge(self, other: Sweep) -> Sweep:
        """Both corpora, the other's texts numbered after these.

        Counts and examples are those of one sweep over both, sums to about 1e-15 of their size.

        Raises `AllHeadsError` for another model, other windows, or other groups of tokens;
        ``ah.corpus.SweepSettings(like=...)`` makes them the same.
        """
        for name in ("weights", "context", "evaluation"):
            require_same(name, self.settings[name], other.settings[name])
        if not torch.equal(self.groups, other.groups):
            raise AllHeadsError("sweeps with the same groups of tokens", "others", "Sweep with like=the first of them.")
        if not (self.finished and other.finished):
            raise AllHeadsError("two finished sweeps", "one that is not", "Sweep with resume=True first.")
        total = RunningStatistics.empty(self._widths, self.statistics.attention.shape[1])
        total.add(self.statistics)
        texts = other.statistics.example_texts
        renumbered = (texts + self.settings["texts"]).where(texts >= 0, -1)
        total.add(replace(other.statistics, example_texts=renumbered))
        sums = {name: self.settings[name] + other.settings[name] for name in ("texts", "windows", "parts")}
        corpus = {"corpus": f"{self.settings['corpus']} {other.settings['corpus']}"}
        return Sweep(self.settings | sums | corpus, self.groups, total, self.done + other.done)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all, or `neurons` as ``.parquet``, which `load` does not read.

        Raises `AllHeadsError` if that fails.
        """
        if named_path(path).suffix == ".parquet":
            return super().save(path)
        return checkpoint.write(path, self.statistics.tensors() | {"groups": self.groups}, self.settings, self.done)

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read what `save`, or a sweep with a checkpoint, has written. Raises `AllHeadsError` for anything else."""
        tensors, settings, done = checkpoint.read(path)
        groups = tensors.pop("groups")
        return cls(settings, groups, RunningStatistics(**tensors), done)

    @property
    def _widths(self) -> list[int]:
        return [width for _, width in self.settings["stems"]]

    def _neurons(self) -> list[str]:
        return [f"{stem}.N{neuron}" for stem, width in self.settings["stems"] for neuron in range(width)]


def _example(value: float, text: int, offset: int, tokens: list[int], activations: list[float]) -> Example:
    shown = [place for place, token in enumerate(tokens) if token >= 0]
    found = [tokens[place] for place in shown], [activations[place] for place in shown]
    return Example(value, text, offset, *found, shown.index(BEFORE))


_STATES = {0.0: "dead", 1.0: "always"}


def require_same(name: str, first: object, second: object) -> None:
    """Raise `AllHeadsError` if a setting of two sweeps differs."""
    if first != second:
        raise AllHeadsError(
            f"a sweep with the same {name}",
            f"{_short(second)} instead of {_short(first)}",
            "Sweep again, or name another file.",
        )


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) < 30 else f"{str(value)[:12]}..."
