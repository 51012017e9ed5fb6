r"""probes: what can be read off what a head writes: which token this is, where it stands, what part of speech it is.

Ridge regressions on classes for many heads at once, from sums, so that no activation is kept: for every fold
``G = X^T X`` and ``C = X^T Y``, Y one-hot. A probe for a held-out fold is ``W = (G + lambda D)^-1 C`` from the sums of
all others, and its answer the class with the largest ``x W``. Lambda is a fixed part of the mean square of the
features; the constant is not shrunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from allheads import AllHeadsError, TwinBridge
from allheads.corpus import opening, windows
from allheads.progress import bar
from allheads.twin.capture import captured
from allheads_labs.kit.text import documentation
from allheads_labs.physics.segments import chosen_layers
from allheads_labs.physics.tags import TAGS, tags

#: Folds of the held-out text, classes of positions, and how many of the commonest tokens are told apart.
FOLDS, PLACES, COMMON = 5, 8, 32


#: The ridge, as a part of the mean diagonal of G.
RIDGE = 1e-4


@dataclass(frozen=True)
class Task:
    """A question about tokens: what are the right answers? -1 where it is not asked.

    ``taught`` has the labels that probes are trained on, a row each: the right ones first, then shuffled ones.
    """

    name: str
    classes: tuple[str, ...]
    taught: Int[Tensor, "way token"]

    @classmethod
    def of(cls, name: str, classes: tuple[str, ...], labels: Int[Tensor, " token"], seeds: int) -> Task:
        """With as many shuffles as ``seeds``, among the tokens that are asked about."""
        chosen, rows = (labels >= 0).nonzero()[:, 0], labels.repeat(1 + seeds, 1)
        for seed in range(seeds):
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
            rows[1 + seed, chosen] = labels[chosen[order]]
        return cls(name, classes, rows)

    @property
    def right(self) -> Int[Tensor, " token"]:
        """The right answers."""
        return self.taught[0]

    def targets(self, rows: Tensor) -> Float[Tensor, "token way*class"]:
        """One-hot, all zero where nothing is asked."""
        labels, count = self.taught[:, rows], len(self.classes)
        hot = F.one_hot(labels.clamp_min(0), count).float() * (labels >= 0)[..., None]
        return hot.transpose(0, 1).flatten(1)

    def majority(self, fold: Int[Tensor, " token"], folds: int) -> list[float]:
        """How often the commonest answer of the other folds is right, by fold."""
        shares = []
        for number in range(folds):
            test, train = (self.right[chosen & (self.right >= 0)] for chosen in (fold == number, fold != number))
            shares.append(float((test == train.bincount().argmax()).double().mean()))
        return shares


class Sums:
    """The sums of one task and one set of parts, by fold; then its probes, and how often they are right."""

    def __init__(self, task: Task, folds: int, parts: int, width: int) -> None:
        self.task = task
        columns = task.taught.shape[0] * len(task.classes)
        self.G = torch.zeros(folds, parts, width + 1, width + 1, dtype=torch.float64)
        self.C = torch.zeros(folds, parts, width + 1, columns, dtype=torch.float64)
        self.hits = torch.zeros(folds, parts, task.taught.shape[0], dtype=torch.float64)
        self.totals = torch.zeros(folds, dtype=torch.float64)
        self.probes: Float[Tensor, "fold part width column"] | None = None

    def add(self, fold: int, X: Float[Tensor, "part token width"], rows: Int[Tensor, " token"]) -> None:
        """What some tokens add; X ends with a constant."""
        chosen = self._has_answer(rows)
        X, Y = X[:, chosen], self.task.targets(rows[chosen])
        self.G[fold] += X.mT @ X
        self.C[fold] += X.mT @ Y

    def solve(self) -> None:
        """Probes for every fold from all the others; the sums are given up."""
        G, C = (total.sum(0) - total for total in (self.G, self.C))
        size = G[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
        ridge = torch.ones(G.shape[-1], dtype=torch.float64)
        ridge[-1] = 1e-9
        G = G + RIDGE * size[..., None, None] * torch.diag(ridge)
        self.probes = torch.linalg.solve(G, C).float()
        del self.G, self.C

    def test(self, fold: int, X: Float[Tensor, "part token width"], rows: Int[Tensor, " token"]) -> None:
        """Count right answers on tokens of a fold that its probes have not seen."""
        assert self.probes is not None
        chosen = self._has_answer(rows)
        answers = (X[:, chosen] @ self.probes[fold]).unflatten(-1, (-1, len(self.task.classes))).argmax(-1)
        self.hits[fold] += (answers == self.task.right[rows[chosen], None]).double().sum(1)
        self.totals[fold] += int(chosen.sum())

    def accuracy(self) -> Float[Tensor, "fold part way"]:
        """Shares of right answers."""
        return self.hits / self.totals[:, None, None]

    def _has_answer(self, rows: Int[Tensor, " token"]) -> Bool[Tensor, " token"]:
        return self.task.right[rows] >= 0


@dataclass(frozen=True)
class Probed:
    """What one task found: shares of right answers on text that a probe has not seen.

    ``chance`` is by majority, ``shuffled`` with shuffled labels in training, ``stream`` with as many random directions
    of what the layer's heads read as a head has, in place of what it writes. ``table`` answers by the token alone, with
    its commonest answer elsewhere.
    """

    task: str
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    heads: Float[Tensor, "fold layer head"]
    shuffled: Float[Tensor, "seed layer head"]
    stream: Float[Tensor, "seed layer"]
    chance: Float[Tensor, " fold"]
    table: Float[Tensor, " fold"]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k heads that carry most of it, with their accuracy."""
        mean = self.heads.mean(0)
        labels = [f"L{layer}.A{head}" for layer in self.layers for head in range(mean.shape[1])]
        best = mean.flatten().topk(min(k, mean.numel()))
        return [(labels[at], value) for value, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


@torch.no_grad()
def probes(
    twin: TwinBridge,
    ids: Int[Tensor, "window pos"] | None = None,
    *,
    seeds: int = 5,
    layers: Sequence[int] | None = None,
) -> list[Probed]:
    r"""Who carries what: linear probes on what every ordinary head writes, one for each head and question.

    The questions are ``identity`` (which of the 32 commonest tokens this is, asked of those only), ``token before``
    (the same of the token before), ``position`` (which eighth of the window) and ``part of speech`` (by rule,
    `allheads_labs.physics.tags`), all at the token that is written to. A probe is a ridge regression on ``hook_z``,
    which carries what the head's write does: W_O is of full rank. Five folds of consecutive text; each is answered by
    probes of the other four. The first token of a window is left out.

    Args:
        twin: from `ah.convert`, with a tokenizer.
        ids: windows of text in order, five at least; `spread_windows` of Python's documentation if None.
        seeds: how many times labels are shuffled, and directions of the stream drawn.
        layers: all if None.

    Returns:
        A `Probed` for each question; shares of right answers in [0, 1].

    Raises:
        AllHeadsError: no tokenizer, too few windows for five folds, layers that do not exist.

    >>> for found in probes(twin, spread_windows(twin, count=20), layers=[0, 15]):  # doctest: +SKIP
    ...     print(found.task, found.top(3), found.chance.mean())
    """
    chosen = chosen_layers(twin, layers)
    _require_tokenizer(twin)
    if ids is None:
        ids = spread_windows(twin)
    if len(ids) < FOLDS:
        raise AllHeadsError(f"{FOLDS} windows or more", str(len(ids)), "Each fold has one at least.")
    fold = (torch.arange(len(ids)) * FOLDS // len(ids))[:, None].expand_as(ids)
    tasks = _tasks(twin, ids, seeds)
    n_heads, d_head = (twin.blocks[chosen[0]].attn.W_Q.shape[i] for i in (0, 2))
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(len(chosen), seeds, twin.cfg.d_model, d_head, generator=draw)
    sums = [[Sums(task, FOLDS, n_heads + seeds, d_head) for task in tasks] for _ in chosen]
    for act in (Sums.add, Sums.test):
        for window in bar(f"Probes: {act.__name__}", range(len(ids))):
            rows = window * ids.shape[1] + torch.arange(ids.shape[1])
            for of_layer, X in zip(sums, _features(twin, ids[window], chosen, directions), strict=True):
                for of_task in of_layer:
                    act(of_task, int(fold[window, 0]), X, rows)
        if act is Sums.add:
            for of_task in chain(*sums):
                of_task.solve()
    return [_probed(chosen, list(of_task), ids.flatten(), fold.flatten()) for of_task in zip(*sums, strict=True)]


def spread_windows(
    twin: TwinBridge, texts: Sequence[str] | None = None, *, context: int = 128, count: int = 96
) -> Int[Tensor, "window pos"]:
    """So many full windows, evenly spread over texts, as ids; over the documentation of Python if None.

    Raises `AllHeadsError` without a tokenizer or enough of them.
    """
    _require_tokenizer(twin)
    begin = opening(twin)
    cut = windows(twin, documentation() if texts is None else texts, context)
    full = [window.ids for window in cut if len(window.ids) == context - len(begin)]
    if not FOLDS <= count <= len(full):
        raise AllHeadsError(f"{FOLDS} to {len(full)} windows", str(count), "So many there are in these texts.")
    return torch.tensor([begin + full[at * len(full) // count] for at in range(count)])


def _require_tokenizer(twin: TwinBridge) -> None:
    if twin.tokenizer is None:
        raise AllHeadsError("a twin with a tokenizer", "none", "Parts of speech are those of words.")


def _tasks(twin: TwinBridge, ids: Int[Tensor, "window pos"], seeds: int) -> list[Task]:
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[:, 0] = True
    common = ids[:, 1:].flatten().bincount().topk(COMMON).indices
    is_common, which = (ids[..., None] == common).max(-1)
    place = (torch.arange(ids.shape[1]) * PLACES // ids.shape[1]).expand_as(ids)
    words = [[TAGS.index(tag) for tag in tags(_pieces(twin, row))] for row in ids.tolist()]
    which, names = which.where(is_common, -1), tuple(twin.tokenizer.decode([token]) for token in common.tolist())
    labels = {
        "identity": (names, which),
        "token before": (names, which.roll(1, 1)),
        "position": (tuple(map(str, range(PLACES))), place),
        "part of speech": (TAGS, torch.tensor(words)),
    }
    return [
        Task.of(name, classes, answers.masked_fill(first, -1).flatten(), seeds)
        for name, (classes, answers) in labels.items()
    ]


def _pieces(twin: TwinBridge, row: list[int]) -> list[str]:
    """What the tokens say, with the space before a word, which some tokenizers show only inside a text."""
    pieces = [(twin.tokenizer.decode([token]), str(twin.tokenizer.convert_ids_to_tokens(token))) for token in row]
    return [f" {text}" if name[:1] == "\u2581" and not text.startswith(" ") else text for text, name in pieces]


def _features(twin: TwinBridge, ids: Tensor, layers: Sequence[int], directions: Tensor) -> list[Tensor]:
    """What every head writes at every token, then the random directions, then a constant: ``[part token width]``."""
    names = [f"blocks.{layer}.attn.hook_{name}" for layer in layers for name in ("in", "z")]
    activations = captured(twin, ids[None].to(twin.cfg.device), names)
    features = []
    for layer, random in zip(layers, directions, strict=True):
        x, z = (activations[f"blocks.{layer}.attn.hook_{name}"][0].float().cpu() for name in ("in", "z"))
        parts = torch.cat([z.unflatten(-1, (-1, random.shape[-1])).flatten(1, -2).transpose(0, 1), x @ random])
        features.append(torch.cat([parts, torch.ones_like(parts[..., :1])], -1))
    return features


def _probed(layers: list[int], sums: list[Sums], tokens: Tensor, fold: Tensor) -> Probed:
    """What one task found, from its sums in every layer."""
    task, accuracy = sums[0].task, torch.stack([of_layer.accuracy() for of_layer in sums], 1)
    # The last parts are random directions, one for each way to shuffle labels.
    n_heads = accuracy.shape[2] - (len(task.taught) - 1)
    heads = accuracy[:, :, :n_heads]
    return Probed(
        task.name,
        task.classes,
        tuple(layers),
        heads[..., 0],
        heads[..., 1:].mean(0).movedim(-1, 0),
        accuracy[:, :, n_heads:, 0].mean(0).T,
        torch.tensor(task.majority(fold, FOLDS)),
        _table(task, tokens, fold),
    )


def _table(task: Task, tokens: Int[Tensor, " token"], fold: Int[Tensor, " token"]) -> Float[Tensor, " fold"]:
    """Answers by the token alone: its commonest answer in the other folds, the first class for a new token."""
    has_answer, shares = task.right >= 0, []
    for number in range(FOLDS):
        counts = torch.zeros(int(tokens.max()) + 1, len(task.classes))
        train, test = (has_answer & chosen for chosen in (fold != number, fold == number))
        counts.index_put_((tokens[train], task.right[train]), torch.ones(int(train.sum())), accumulate=True)
        shares.append(float((counts.argmax(1)[tokens[test]] == task.right[test]).double().mean()))
    return torch.tensor(shares)
