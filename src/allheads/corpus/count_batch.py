"""One batch through the twin, counted while it runs: no activation outlives its layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from allheads.corpus.head_roles import destinations, role_masks, role_sums
from allheads.corpus.running_statistics import SHOWN, RunningStatistics
from allheads.corpus.token_windows import Batch
from allheads.models.attention import attention_layers
from allheads.twin.twin import TwinBridge, require_twin


def require_countable(twin: TwinBridge) -> None:
    """Raise `AllHeadsError` for anything but a twin of one stack with shared projections."""
    require_twin(twin).require_one_stack("count what its parts do")
    for layer in twin.layers:
        layer.bank.require_shared("neurons with one activation each", layer.location.stem)


def head_labels(twin: TwinBridge) -> list[list[str]]:
    """Labels of the ordinary heads, by layer."""
    return [
        [f"{layer.location.stem}.{layer.kind}{head}" for head in range(layer.n_heads)]
        for layer in attention_layers(twin)
    ]


def count_batch(
    twin: TwinBridge,
    batch: Batch,
    token_groups: Int[Tensor, " d_vocab"],
    position_groups: Int[Tensor, " context"],
    statistics: RunningStatistics,
) -> None:
    """Run the twin on a batch and add what its heads and neurons do."""
    counted, masks = batch.counted, role_masks(batch.tokens, batch.real)
    token = token_groups[batch.tokens[counted]]
    position = position_groups[: counted.shape[1]].expand_as(counted)[counted]
    statistics.token_counts += torch.bincount(token, minlength=len(statistics.token_counts))
    statistics.position_counts += torch.bincount(position, minlength=len(statistics.position_counts))
    statistics.destinations += torch.cat([destinations(masks), counted.sum()[None]])

    def count_pattern(rows: slice, pattern: Float[Tensor, "batch head pos pos"], hook: object) -> None:
        entropy = -torch.xlogy(pattern.double(), pattern.double()).sum(-1)
        sums = torch.einsum("bhq,bq->h", entropy, counted.double())
        statistics.attention[:, rows] += torch.cat([role_sums(pattern, masks), sums[None]])

    def count_gate(rows: slice, pre: Float[Tensor, "batch pos neuron"], hook: object) -> None:
        statistics.open[rows] += ((pre > 0) & counted[..., None]).sum((0, 1))

    def count_activation(rows: slice, post: Float[Tensor, "batch pos neuron"], hook: object) -> None:
        values = post[counted].double()
        statistics.squares[rows] += values.square().sum(0)
        statistics.token_sums[:, rows].index_add_(0, token, values)
        statistics.position_sums[:, rows].index_add_(0, position, values)
        statistics.offer(rows, *_examples(post, batch, counted))

    heads = _rows({f"{layer.location.prefix}hook_pattern": layer.n_heads for layer in attention_layers(twin)})
    neurons = _rows({layer.location.prefix: layer.bank.d_mlp for layer in twin.layers})
    hooks: list[Any] = [(name, partial(count_pattern, rows)) for name, rows in heads.items()]
    hooks += [(f"{prefix}hook_pre", partial(count_gate, rows)) for prefix, rows in neurons.items()]
    hooks += [(f"{prefix}hook_post", partial(count_activation, rows)) for prefix, rows in neurons.items()]
    # Padding is behind what it pads, but not every network looks backward only.
    options = {} if bool(batch.real.all()) else {"attention_mask": batch.real.long()}
    with torch.no_grad(), twin.hooks(fwd_hooks=hooks):
        twin(batch.tokens, **options)


def _examples(
    post: Float[Tensor, "batch pos neuron"], batch: Batch, counted: Bool[Tensor, "batch pos"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest activation of each neuron in each window: its value, text, offset, and the tokens up to it."""
    at = post.abs().masked_fill(~counted[..., None], -1.0).argmax(1).T
    values = post.take_along_dim(at.T[:, None], 1)[:, 0].T.double()
    recent = F.pad(batch.tokens, (SHOWN - 1, 0), value=-1).unfold(1, SHOWN, 1)
    window = torch.arange(len(batch.tokens), device=at.device).expand_as(at)
    # A window of one token has no example to give.
    texts = batch.text.masked_fill(~counted.any(1), -1)
    return values, texts.expand_as(at), batch.first + at, recent[window, at]


def _rows(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Which rows of the statistics belong to each hook point or layer."""
    ends = accumulate(sizes.values(), initial=0)
    return dict(zip(sizes, (slice(a, b) for a, b in pairwise(ends)), strict=True))
