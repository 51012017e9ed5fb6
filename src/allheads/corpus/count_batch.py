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
from torch.nn import functional as F

from allheads.corpus.head_roles import destinations, role_masks, role_sums
from allheads.corpus.running_statistics import SHOWN, RunningStatistics
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
        points = {site: _shown(site) for site in sites(twin)}
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


def _shown(site: Site) -> str:
    """Where patterns, or activations, pass."""
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
    token = token_groups[batch.tokens[counted]]
    position = position_groups[: counted.shape[1]].expand_as(counted)[counted]
    statistics.token_counts += torch.bincount(token, minlength=len(statistics.token_counts))
    statistics.position_counts += torch.bincount(position, minlength=len(statistics.position_counts))
    statistics.destinations += torch.cat([destinations(masks), counted.sum()[None]])

    def count_pattern(rows: slice, pattern: Float[Tensor, "batch head pos pos"], hook: object) -> None:
        entropy = -torch.xlogy(pattern.double(), pattern.double()).sum(-1)
        sums = torch.einsum("bhq,bq->h", entropy, counted.double())
        statistics.attention[:, rows] += torch.cat([role_sums(pattern, masks), sums[None]])

    def count_activation(rows: slice, post: Float[Tensor, "batch pos neuron"], hook: object) -> None:
        post = apart(post)
        values = post[counted].double()
        statistics.squares[rows] += values.square().sum(0)
        statistics.token_sums[:, rows].index_add_(0, token, values)
        statistics.position_sums[:, rows].index_add_(0, position, values)
        statistics.offer(rows, *_examples(post, batch, counted))

    chosen: dict[int, Bool[Tensor, "batch pos"]] = {}

    def choose(bank: HeadBank, args: tuple[Tensor, Tensor | None]) -> None:
        # The router's weight scales what an expert writes, or what it reads.
        scale = args[1] if len(args) > 1 and args[1] is not None else args[0].any(-1)
        chosen[id(bank)] = counted & apart(scale != 0)

    def count_gate(site: Site, rows: slice, pre: Float[Tensor, "batch pos neuron"], hook: object) -> None:
        where = chosen.get(id(banks[site.location.prefix]), counted)
        found = torch.bincount(token_groups[batch.tokens[where]], minlength=len(statistics.chosen))
        statistics.chosen[:, countable.neurons.index(site)] += found
        statistics.open[rows] += ((apart(pre) > 0) & where[..., None]).sum((0, 1))

    heads = _rows({_shown(site): site.count for site in countable.heads})
    neurons = _rows({site.location.prefix: site.count for site in countable.neurons})
    hooks: list[Any] = [(name, partial(count_pattern, rows)) for name, rows in heads.items()]
    banks = {layer.location.prefix: layer.bank for layer in countable.twin.layers}
    hooks += [
        (f"{site.location.prefix}hook_pre", partial(count_gate, site, neurons[site.location.prefix]))
        for site in countable.neurons
    ]
    hooks += [(f"{prefix}hook_post", partial(count_activation, rows)) for prefix, rows in neurons.items()]
    # Padding is behind what it pads, but not every network looks backward only.
    options = {} if bool(batch.real.all()) else {"attention_mask": batch.real.long()}
    with ExitStack() as stack:
        for site in countable.neurons:
            if site.location.expert is not None:
                handle = banks[site.location.prefix].register_forward_pre_hook(choose)
                stack.callback(handle.remove)
        apart = stack.enter_context(prompts_apart(countable.twin))
        stack.enter_context(countable.twin.hooks(fwd_hooks=hooks))
        stack.enter_context(torch.no_grad())
        countable.run(batch.tokens, **options)


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
