"""One batch through the twin, added to a tally while it runs: no activation outlives its layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from allheads.corpus.head_roles import destinations, role_masks, role_sums
from allheads.corpus.running_statistics import PLACES, SHOWN, Tally
from allheads.corpus.token_windows import Batch
from allheads.models.attention import attention_layers
from allheads.twin.twin import TwinBridge, require_twin


@dataclass(frozen=True)
class Points:
    """Where a twin's ordinary heads and neurons are watched, with which rows of a tally are theirs."""

    patterns: dict[str, slice]
    neurons: dict[str, slice]
    heads: list[str]
    stems: list[tuple[str, int]]

    @classmethod
    def of(cls, twin: TwinBridge) -> Points:
        """All of them. Raises `AllHeadsError` for anything but a twin of one stack with shared projections."""
        require_twin(twin)
        twin.require_one_stack("count what its parts do")
        for layer in twin.layers:
            layer.bank.require_shared("neurons with one activation each", layer.location.stem)
        attention = attention_layers(twin)
        return cls(
            _spans({f"{each.location.prefix}hook_pattern": each.n_heads for each in attention}),
            _spans({layer.location.prefix: layer.bank.d_mlp for layer in twin.layers}),
            [f"{each.location.stem}.{each.kind}{head}" for each in attention for head in range(each.n_heads)],
            [(layer.location.stem, layer.bank.d_mlp) for layer in twin.layers],
        )


@dataclass(frozen=True)
class Watch:
    """A twin with its points, the group of every token, and the longest window."""

    twin: TwinBridge
    points: Points
    groups: Int[Tensor, " d_vocab"]
    context: int

    def count(self, batch: Batch, tally: Tally) -> None:
        """Run the twin on a batch and count what its heads and neurons do."""
        masks = role_masks(batch.tokens, batch.real)
        counted = batch.real.clone()
        counted[:, 0] = False
        place = torch.arange(counted.shape[1], device=counted.device).expand_as(counted)[counted]
        seen = _Seen(batch, counted, self.groups[batch.tokens[counted]], place * PLACES // max(PLACES, self.context))
        tally.token_counts += torch.bincount(seen.group, minlength=len(tally.token_counts))
        tally.place_counts += torch.bincount(seen.place, minlength=PLACES)
        tally.destinations += torch.cat([destinations(masks), counted.sum()[None]])
        hooks: list[tuple[str, Callable[..., None]]] = []
        for name, span in self.points.patterns.items():
            hooks.append((name, _of_pattern(tally, span, masks, counted)))
        for prefix, span in self.points.neurons.items():
            hooks.append((f"{prefix}hook_pre", _of_gate(tally, span, counted)))
            hooks.append((f"{prefix}hook_post", _of_activation(tally, span, seen)))
        # Padding is behind what it pads, but not every network looks backward only.
        options = {} if bool(batch.real.all()) else {"attention_mask": batch.real.long()}
        with torch.no_grad(), self.twin.hooks(fwd_hooks=hooks):
            self.twin(batch.tokens, **options)


@dataclass(frozen=True)
class _Seen:
    """A batch, which of its positions count, and the groups that these belong to."""

    batch: Batch
    counted: Tensor
    group: Tensor
    place: Tensor


def _of_pattern(tally: Tally, span: slice, masks: Tensor, counted: Tensor) -> Callable[..., None]:
    def count(pattern: Tensor, hook: object) -> None:
        entropy = -torch.xlogy(pattern.double(), pattern.double()).sum(-1)
        sums = torch.einsum("bhq,bq->h", entropy, counted.double())
        tally.attention[:, span] += torch.cat([role_sums(pattern, masks), sums[None]])

    return count


def _of_gate(tally: Tally, span: slice, counted: Tensor) -> Callable[..., None]:
    def count(pre: Tensor, hook: object) -> None:
        tally.open[span] += ((pre > 0) & counted[..., None]).sum((0, 1))

    return count


def _of_activation(tally: Tally, span: slice, seen: _Seen) -> Callable[..., None]:
    def count(post: Tensor, hook: object) -> None:
        rows = post[seen.counted].double()
        tally.squares[span] += rows.square().sum(0)
        tally.token_sums[:, span].index_add_(0, seen.group, rows)
        tally.place_sums[:, span].index_add_(0, seen.place, rows)
        tally.offer(span, *_examples(post, seen))

    return count


def _examples(post: Tensor, seen: _Seen) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest activation of each neuron in each window: its value, text, offset, and the tokens up to it."""
    batch = seen.batch
    at = post.abs().masked_fill(~seen.counted[..., None], -1.0).argmax(1).T
    values = post.take_along_dim(at.T[:, None], 1)[:, 0].T.double()
    recent = F.pad(batch.tokens, (SHOWN - 1, 0), value=-1).unfold(1, SHOWN, 1)
    row = torch.arange(len(batch.tokens), device=at.device).expand_as(at)
    # A window of one token has no example to give.
    texts = batch.text.masked_fill(~seen.counted.any(1), -1)
    return values, texts.expand_as(at), batch.first + at, recent[row, at]


def _spans(sizes: dict[str, int]) -> dict[str, slice]:
    ends = accumulate(sizes.values(), initial=0)
    return dict(zip(sizes, (slice(a, b) for a, b in pairwise(ends)), strict=True))
