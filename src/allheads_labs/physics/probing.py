"""probes: what can be read off what a head writes: which token this is, where it stands, what part of speech it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads import AllHeadsError, TwinBridge
from allheads.corpus import opening, windows
from allheads.progress import bar
from allheads_labs.kit.text import documentation
from allheads_labs.physics.regression import Sums, Task
from allheads_labs.physics.segments import chosen_layers
from allheads_labs.physics.tags import TAGS, tags

#: Folds of the held-out text, classes of positions, and how many of the commonest tokens are told apart.
FOLDS, PLACES, COMMON = 5, 8, 32


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
        best = mean.flatten().topk(min(k, mean.numel()))
        n_heads = mean.shape[1]
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [(f"L{self.layers[i // n_heads]}.A{i % n_heads}", value) for value, i in pairs]


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
    if ids is None:
        ids = spread_windows(twin)
    if twin.tokenizer is None:
        raise AllHeadsError("a twin with a tokenizer", "none", "Parts of speech are those of words.")
    if len(ids) < FOLDS:
        raise AllHeadsError(f"{FOLDS} windows or more", str(len(ids)), "Each fold has one at least.")
    fold = (torch.arange(len(ids)) * FOLDS // len(ids))[:, None].expand_as(ids)
    tasks = _tasks(twin, ids, seeds)
    n_heads, d_head = (twin.blocks[chosen[0]].attn.W_Q.shape[i] for i in (0, 2))
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(len(chosen), seeds, twin.cfg.d_model, d_head, generator=draw)
    sums = [[Sums(task, FOLDS, n_heads + seeds, d_head) for task in tasks] for _ in chosen]
    for act in ("add", "test"):
        for window in bar(f"Probes: {act}", range(len(ids))):
            rows = window * ids.shape[1] + torch.arange(ids.shape[1])
            for number, X in enumerate(_features(twin, ids[window], chosen, directions)):
                for each in sums[number]:
                    getattr(each, act)(int(fold[window, 0]), X, rows)
        for each in (one for several in sums for one in several) if act == "add" else ():
            each.solve()
    return [_found(task, chosen, [several[i] for several in sums], ids, fold) for i, task in enumerate(tasks)]


def spread_windows(
    twin: TwinBridge, texts: Sequence[str] | None = None, *, context: int = 128, count: int = 96
) -> Int[Tensor, "window pos"]:
    """So many full windows, evenly spread over texts, as ids; over the documentation of Python if None.

    Raises `AllHeadsError` without a tokenizer or enough of them.
    """
    if twin.tokenizer is None:
        raise AllHeadsError("a twin with a tokenizer", "none", "Parts of speech are those of words.")
    begin = opening(twin)
    cut = windows(twin, documentation() if texts is None else texts, context)
    full = [window.ids for window in cut if len(window.ids) == context - len(begin)]
    if not FOLDS <= count <= len(full):
        raise AllHeadsError(f"{FOLDS} to {len(full)} windows", str(count), "So many there are in these texts.")
    chosen = [full[i * len(full) // count] for i in range(count)]
    return torch.tensor([begin + each for each in chosen])


def _tasks(twin: TwinBridge, ids: Int[Tensor, "window pos"], seeds: int) -> list[Task]:
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[:, 0] = True
    common = ids[:, 1:].flatten().bincount().topk(COMMON).indices
    is_one, which = (ids[..., None] == common).max(-1)
    place = (torch.arange(ids.shape[1]) * PLACES // ids.shape[1]).expand_as(ids)
    words = [tags(_pieces(twin, row)) for row in ids.tolist()]
    which, names = which.where(is_one, -1), tuple(twin.tokenizer.decode([token]) for token in common.tolist())
    labels = {
        "identity": (names, which),
        "token before": (names, which.roll(1, 1)),
        "position": (tuple(str(each) for each in range(PLACES)), place),
        "part of speech": (TAGS, torch.tensor([[TAGS.index(each) for each in row] for row in words])),
    }
    return [
        Task.of(name, classes, right.masked_fill(first, -1).flatten(), seeds)
        for name, (classes, right) in labels.items()
    ]


def _pieces(twin: TwinBridge, row: list[int]) -> list[str]:
    """What the tokens say, with the space before a word, which some tokenizers show only inside a text."""
    tokenizer = twin.tokenizer
    found = [tokenizer.decode([token]) for token in row]
    marked = [str(token).startswith("\u2581") for token in tokenizer.convert_ids_to_tokens(row)]
    return [
        f" {piece}" if mark and not piece.startswith(" ") else piece for piece, mark in zip(found, marked, strict=True)
    ]


def _features(twin: TwinBridge, ids: Tensor, layers: Sequence[int], directions: Tensor) -> list[Tensor]:
    """What every head writes at every token, then the random directions, then a constant: ``[part token width]``."""
    names = [f"blocks.{layer}.attn.hook_{name}" for layer in layers for name in ("in", "z")]
    seen = twin.run_with_cache(ids[None].to(twin.cfg.device), names_filter=names, return_cache_object=False)[1]
    found = []
    for layer, turned in zip(layers, directions, strict=True):
        x, z = (seen[f"blocks.{layer}.attn.hook_{name}"][0].float().cpu() for name in ("in", "z"))
        parts = torch.cat([z.unflatten(-1, (-1, turned.shape[-1])).flatten(1, -2).transpose(0, 1), x @ turned])
        found.append(torch.cat([parts, torch.ones_like(parts[..., :1])], -1))
    return found


def _found(task: Task, layers: list[int], sums: list[Sums], ids: Tensor, fold: Tensor) -> Probed:
    accuracy = torch.stack([each.accuracy() for each in sums], 1)
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
        torch.tensor(task.majority(fold.flatten(), FOLDS)),
        _table(task, ids.flatten(), fold.flatten()),
    )


def _table(task: Task, tokens: Int[Tensor, " token"], fold: Int[Tensor, " token"]) -> Float[Tensor, " fold"]:
    """Answers by the token alone: its commonest answer in the other folds, the first class for a new token."""
    asked, found = task.right >= 0, []
    for each in range(FOLDS):
        counts = torch.zeros(int(tokens.max()) + 1, len(task.classes))
        train, test = (asked & chosen for chosen in (fold != each, fold == each))
        counts.index_put_((tokens[train], task.right[train]), torch.ones(int(train.sum())), accumulate=True)
        found.append(float((counts.argmax(1)[tokens[test]] == task.right[test]).double().mean()))
    return torch.tensor(found)
