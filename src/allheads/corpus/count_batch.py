"""One batch through the twin, counted while it runs: no activation outlives its layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allheads.corpus.activation_bins import bin_counts
from allheads.corpus.head_roles import destinations, role_masks, role_sums
from allheads.corpus.running_statistics import BEFORE, SHOWN, RunningStatistics
from allheads.corpus.token_windows import Batch
from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.models.observe import run_bridge
from allheads.twin.capture import capturing
from allheads.twin.sites import Site, prompts_apart, sites
from allheads.twin.twin import TwinBridge, require_twin


@dataclass(frozen=True)
class Countable:
    """A twin that reads text, and the sublayers that do something at every token of it.

    A decoder beside an encoder reads the same text: its cross-attention looks at the tokens that it has itself.
    """

    twin: TwinBridge
    heads: list[Site]
    neurons: list[Site]
    own_rows: list[Site]

    @classmethod
    def of(cls, twin: TwinBridge) -> Countable:
        """Run three tokens to see which sublayers these are: towers for images and sounds are silent.

        Raises `AllHeadsError` for anything but a twin, one that reads no text, edited heads, and heads whose patterns
        are no probabilities: some bridges show what is added to scores instead.
        """
        reads = getattr(require_twin(twin).original_model, "main_input_name", "input_ids")
        if reads != "input_ids":
            raise AllHeadsError(
                "a model that reads text", f"one that reads {reads}", "There are no tokens to count by."
            )
        for layer in twin.layers:
            layer.bank.require_shared("neurons with one activation each", layer.location.stem)
        points = {site: shown_at(site) for site in sites(twin)}
        known = [point for point in points.values() if point in twin.hook_dict]
        probe = cls(twin, [], [], [])
        with torch.no_grad(), capturing(twin, known) as activations:
            probe.run(torch.arange(3, device=twin.cfg.device)[None] % twin.cfg.d_vocab)
        ran = [site for site, point in points.items() if point in activations]
        found = [site for site in ran if 3 in activations[points[site]].shape[1:]]
        heads, neurons = ([site for site in found if (site.kind == "N") == of_neurons] for of_neurons in (False, True))
        for site in heads:
            pattern = activations[points[site]]
            sums = pattern.sum(-1)  # less than 1 where a sink takes the rest
            if not bool((pattern >= 0).all() & (sums <= 1.0 + 1e-2).all()):
                raise AllHeadsError(
                    "heads that show their patterns",
                    f"{points[site]}, whose rows sum to {float(sums.min()):.3g} to {float(sums.max()):.3g}",
                    "Where they attend cannot be counted.",
                )
        own = [site for site in ran if site not in found and site.location.expert is not None]
        return cls(twin, heads, neurons, own)

    def require_positions(self) -> None:
        """Raises `AllHeadsError` for experts that read only rows of tokens that chose them: whose these are is lost."""
        if self.own_rows:
            raise AllHeadsError(
                "experts that read every position",
                f"{self.own_rows[0].location.stem}, which reads rows of its own",
                "Its activations cannot be told by token; ah.corpus.head_scores reads the ordinary heads.",
            )

    @property
    def labels(self) -> list[list[str]]:
        """Labels of the heads, by sublayer."""
        return [[str(site.label(head)) for head in range(site.count)] for site in self.heads]

    def run(self, tokens: Int[Tensor, "batch pos"], **options: Tensor) -> Float[Tensor, "batch pos out"]:
        """Let the twin read these."""
        inputs = {"input": tokens} | options
        if getattr(getattr(self.twin.original_model, "config", None), "is_encoder_decoder", False):
            inputs |= {"decoder_input": tokens} | {f"decoder_{name}": value for name, value in options.items()}
        return run_bridge(self.twin, inputs)

    def run_batch(self, batch: Batch) -> None:
        """Let the twin read a batch: padding is behind what it pads, but not every network looks backward only."""
        self.run(batch.tokens, **({} if bool(batch.real.all()) else {"attention_mask": batch.real.long()}))


def shown_at(site: Site) -> str:
    """The hook point where patterns, or activations, pass."""
    return site.point if site.kind == "N" else f"{site.location.prefix}hook_pattern"


def count_batch(
    countable: Countable,
    batch: Batch,
    token_groups: Int[Tensor, " d_vocab"],
    position_groups: Int[Tensor, " context"],
    statistics: RunningStatistics,
) -> None:
    """Run the twin on a batch and add what its heads and neurons do.

    A neuron of an expert is open, and active, only where the router has chosen the expert.
    """
    counted, masks = batch.counted, role_masks(batch.tokens, batch.real)
    if not bool(counted.any()):
        return  # windows of one token
    token = token_groups[batch.tokens[counted]]
    position = position_groups[: counted.shape[1]].expand_as(counted)[counted]
    statistics.token_counts += torch.bincount(token, minlength=len(statistics.token_counts))
    statistics.position_counts += torch.bincount(position, minlength=len(statistics.position_counts))
    statistics.destinations += torch.cat([destinations(masks), counted.sum()[None]])

    def count_pattern(rows: slice, pattern: Float[Tensor, "batch head pos pos"], hook: object) -> None:
        pattern = pattern.double()
        entropy = -torch.xlogy(pattern, pattern).sum(-1)
        sums = torch.einsum("bhq,bq->h", entropy, counted.double())
        statistics.attention[:, rows] += torch.cat([role_sums(pattern, masks), sums[None]])

    def count_activation(rows: slice, post: Float[Tensor, "batch pos neuron"], hook: object) -> None:
        post = apart(post)
        there = post[counted]
        statistics.lowest[rows] = torch.minimum(statistics.lowest[rows], there.amin(0).double())
        statistics.highest[rows] = torch.maximum(statistics.highest[rows], there.amax(0).double())
        statistics.histogram[rows] += bin_counts(there)
        values = there.double()
        statistics.squares[rows] += values.square().sum(0)
        statistics.token_sums[:, rows].index_add_(0, token, values)
        statistics.position_sums[:, rows].index_add_(0, position, values)
        at = _places(post, counted)
        statistics.offer(rows, _found(post, batch, at), lambda *which: _around(post, batch, at, which))

    chosen: dict[int, Bool[Tensor, "batch pos"]] = {}

    def choose(bank: HeadBank, args: tuple[Tensor, Tensor | None]) -> None:
        # The router's weight scales what an expert writes, or what it reads.
        scale = args[1] if len(args) > 1 and args[1] is not None else args[0].any(-1)
        chosen[id(bank)] = counted & apart(scale != 0)

    def count_gate(site: Site, rows: slice, pre: Float[Tensor, "batch pos neuron"], hook: object) -> None:
        where = chosen.get(id(banks[site.location.prefix]), counted)
        found = torch.bincount(token_groups[batch.tokens[where]], minlength=len(statistics.chosen))
        statistics.chosen[:, countable.neurons.index(site)] += found
        opened = (apart(pre) > 0) & where[..., None]
        statistics.open[rows] += opened.flatten(0, 1).sum(0, dtype=torch.int32)

    heads = _rows({shown_at(site): site.count for site in countable.heads})
    neurons = _rows({site.location.prefix: site.count for site in countable.neurons})
    hooks: list[Any] = [(name, partial(count_pattern, rows)) for name, rows in heads.items()]
    banks = {layer.location.prefix: layer.bank for layer in countable.twin.layers}
    hooks += [
        (f"{site.location.prefix}hook_pre", partial(count_gate, site, neurons[site.location.prefix]))
        for site in countable.neurons
    ]
    hooks += [(f"{prefix}hook_post", partial(count_activation, rows)) for prefix, rows in neurons.items()]
    with ExitStack() as stack:
        for site in countable.neurons:
            if site.location.expert is not None:
                handle = banks[site.location.prefix].register_forward_pre_hook(choose)
                stack.callback(handle.remove)
        apart = stack.enter_context(prompts_apart(countable.twin))
        stack.enter_context(countable.twin.hooks(fwd_hooks=hooks))
        stack.enter_context(torch.no_grad())
        countable.run_batch(batch)


def _places(post: Float[Tensor, "batch pos neuron"], counted: Bool[Tensor, "batch pos"]) -> Int[Tensor, "neuron batch"]:
    """Where each neuron is largest, by size, in each window."""
    return post.abs().masked_fill_(~counted[..., None], -1.0).max(1).indices.T


def _found(
    post: Float[Tensor, "batch pos neuron"], batch: Batch, at: Int[Tensor, "neuron batch"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The activations there, with their texts and offsets. A window of one token has no example to give."""
    values = post.take_along_dim(at.T[:, None], 1)[:, 0].T.double()
    none = ~batch.counted.any(1)
    texts, offsets = batch.text.masked_fill(none, -1).expand_as(at), batch.first + at
    return values.masked_fill(none, 0.0), texts, offsets.masked_fill(none, -1)


def _around(
    post: Float[Tensor, "batch pos neuron"], batch: Batch, at: Int[Tensor, "neuron batch"], which: tuple[Tensor, Tensor]
) -> tuple[Int[Tensor, "example shown"], Float[Tensor, "example shown"]]:
    """Tokens around some of these places, named by neuron and window, and the neuron's activation at each."""
    neuron, window = which
    position = at[neuron, window][:, None] + torch.arange(-BEFORE, SHOWN - BEFORE, device=at.device)
    inside = (position >= 0) & (position < batch.real.shape[1])
    rows, position = window[:, None], position.where(inside, 0)
    tokens = batch.tokens[rows, position].where(inside & batch.real[rows, position], -1)
    activations = post[rows, position, neuron[:, None]].where(inside & batch.counted[rows, position], 0.0)
    return tokens.int(), activations.float()


def _rows(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Which rows of the statistics belong to each hook point or layer."""
    ends = accumulate(sizes.values(), initial=0)
    return dict(zip(sizes, (slice(a, b) for a, b in pairwise(ends)), strict=True))
