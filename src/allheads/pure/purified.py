"""From a twin to its pure form: sublayers in the order of the network, and what makes logits of the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from allheads.models.attention import read_attention
from allheads.models.compat import network_path
from allheads.models.observe import evaluating, run_bridge
from allheads.pure.attention import attention_heads, dense_heads, neuron_heads, pure_norm, refused
from allheads.pure.masks import Masks
from allheads.pure.router import read_router
from allheads.pure.runner import Heads, Norm, Pure, Router, Sublayer
from allheads.pure.streams import Streams, Sum, cut, reached, rows
from allheads.twin.segments import END, CutRun
from allheads.twin.sites import Site, by_head, sites
from allheads.twin.twin import TwinBridge


def purified(twin: TwinBridge) -> tuple[Streams, Pure]:
    """The twin as `Pure`: weights are views where nothing has to be multiplied. Nothing is compared yet."""
    run = cut(twin)
    ran = [site for site in sites(twin) if run.parts.get(site.name) in run.leaves]
    streams = _streams(twin, run, [site for site in ran if site.kind != "N"])
    leaves = reached(streams, lambda leaf: _sinks(run, leaf))
    if again := sorted(run.twice & {sink for leaf in leaves for sink in _sinks(run, leaf)}):
        raise refused(", ".join(map(network_path, again))[:100], "weights that are used again")
    _Builder(streams, {site.name: site for site in ran if site.name in leaves and site.kind != "N"}, leaves).build()
    W_U, b_U, cap = _unembedding(streams)
    model = Pure(
        name=twin.cfg.model_name,
        n_ctx=streams.n_ctx,
        d_model=run.reads[END].shape[-1],
        beginnings=streams.beginnings,
        sublayers=streams.steps,
        unembed=W_U,
        unembed_bias=b_U,
        position=streams.position,
        cap=cap,
    )
    return streams, model


def _streams(twin: TwinBridge, run: CutRun, attention: list[Site]) -> Streams:
    """What every leaf writes. Raises `AllHeadsError` for attention without weights."""
    shown = {name: leaf for name, leaf in run.leaves.items() if name in run.tables or name in run.reads}
    # Experts that are called on rows of their own write into no stream.
    writes = {name: rows(leaf) for name, leaf in shown.items() if leaf.numel() % (2 * leaf.shape[-1]) == 0}
    outputs = {}
    for site in attention:
        weights = read_attention(twin, run.twin.index.attention[site.location.stem, site.kind])
        outputs[site.name] = W_O = weights.W_O.detach()
        z = by_head(run.leaves[site.name], len(W_O)).detach().double()
        written = torch.einsum("bphe,hed->bpd", z.reshape(2, -1, *W_O.shape[:2]), W_O.double())
        writes[site.name] = written if weights.b_O is None else written + weights.b_O.double()
    return Streams(twin, run, writes, outputs, n_ctx=_context(twin))


def _context(twin: TwinBridge) -> int:
    """How many positions a file may be run on: those for which frequencies and scales stay as they are."""
    config = getattr(twin.original_model, "config", None)
    config = getattr(config, "text_config", config)
    own = getattr(config, "rope_parameters", None) or {}
    limits = [twin.cfg.n_ctx]
    for rope in (own, *(inner for inner in own.values() if isinstance(inner, dict))):  # some have one for each kind
        first = rope.get("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None))
        if first and (rope.get("rope_type") in ("dynamic", "longrope") or rope.get("llama_4_scaling_beta")):
            limits.append(first)
    return min(limits)


def _sinks(run: CutRun, leaf: str) -> list[str]:
    """What a leaf is made of: two reads for heads, one for norms and neurons, none for embeddings."""
    return [leaf] if leaf in run.reads else [sink for side in "QV" if (sink := f"{leaf}.{side}") in run.reads]


@dataclass
class _Builder:
    """Steps in the order of the network. A norm that only sublayers read becomes part of these."""

    streams: Streams
    sites: dict[str, Site]
    leaves: set[str]
    inner: dict[str, Norm] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)

    def build(self) -> None:
        """Begin, and add a step for every leaf that the end depends on."""
        streams, run = self.streams, self.streams.run
        seen = Masks.of(run.twin, list(self.sites.values()), streams.n_ctx)
        for leaf in self._order():
            if leaf in run.tables:
                streams.begin(leaf)
                continue
            for sink in _sinks(run, leaf)[:1]:
                streams.note(leaf, sink)
            if leaf in run.norms:
                self._norm(leaf)
            elif leaf not in self.sites:
                self._add(leaf, *self._neurons(leaf))
            else:
                written = attention_heads(run, self.sites[leaf], seen)
                self._add(leaf, written, other=self._other(leaf))
        self._add(END, [])

    def _order(self) -> list[str]:
        """Leaves as they run; a dense layer comes before the norm that reads it."""
        streams, order = self.streams, []
        for leaf in streams.run.leaves:
            if leaf in self.leaves:
                order += [d for d in streams.activated if leaf in streams.run.norms and d in streams.found(leaf)]
                order.append(leaf)
        return order

    def _neurons(self, leaf: str) -> tuple[list[Heads], Router | None]:
        """The heads of a bank, of all experts' banks with their router, or of a dense layer."""
        twin, run = self.streams.twin, self.streams.run
        if leaf in self.streams.activated:
            return dense_heads(twin, leaf, self.streams.activated[leaf]), None
        banks = {f"{layer.location.stem}.N": layer.bank for layer in twin.layers}
        experts = [banks[name] for name, parts in run.parts.items() if parts == leaf]
        if len(experts) == 1:
            return neuron_heads(experts[0]), None
        router = read_router(twin, leaf, rows(run.reads[leaf]).flatten(0, 1), run.seen.get(leaf))
        return [replace(heads, expert=e) for e, bank in enumerate(experts) for heads in neuron_heads(bank)], router

    def _other(self, leaf: str) -> str | None:
        """What keys and values read, where it is not what queries read."""
        queries, values = (self.streams.reads(f"{leaf}.{side}") for side in "QV")
        return None if queries == values else self._named(f"{leaf}.V")

    def _named(self, sink: str) -> str:
        """One name for what is read."""
        (name, factor), *_ = self._source(sink).items()
        if factor == 1.0:
            return name
        self.streams.steps.append(Sublayer(f"{sink} x", reads={name: factor}))
        return f"{sink} x"

    def _norm(self, leaf: str) -> None:
        norm = self.streams.run.norms[leaf]
        if norm is None:
            raise refused(network_path(leaf), "a norm that is neither RMSNorm nor LayerNorm")
        self.inner[leaf] = pure_norm(norm)
        if not self._only_inside(leaf):
            self._give(leaf)

    def _only_inside(self, leaf: str) -> bool:
        """Is all that reads a norm a sublayer's heads, which read nothing else?"""
        streams, run = self.streams, self.streams.run
        for reader in [*self.leaves, END]:
            sinks = [END] if reader == END else _sinks(run, reader)
            readers = [sink for sink in sinks if leaf in streams.found(sink)]
            if readers and (reader in run.norms or any(streams.found(sink) != {leaf: 1.0} for sink in sinks)):
                return False
        return True

    def _give(self, leaf: str) -> None:
        """Let others read what a norm gives."""
        if leaf in self.inner and leaf not in self.given:
            self.given.add(leaf)
            self.streams.steps.append(Sublayer(leaf, norm=self.inner[leaf], reads=self._source(leaf)))

    def _source(self, sink: str) -> Sum:
        for leaf in self.streams.reads(sink):
            self._give(leaf)
        return self.streams.source(sink)

    def _add(self, name: str, heads: list[Heads], router: Router | None = None, other: str | None = None) -> None:
        """A sublayer, with the norm that it alone reads."""
        sink = END if name == END else _sinks(self.streams.run, name)[0]
        (leaf, factor), *more = self.streams.reads(sink).items()
        alone = leaf in self.inner and leaf not in self.given and factor == 1.0 and not more
        norm, reads = (self.inner[leaf], self._source(leaf)) if alone else (None, self._source(sink))
        self.streams.steps.append(Sublayer(name, heads, norm, reads, other, router))


def _unembedding(streams: Streams) -> tuple[Tensor | None, Tensor | None, float | None]:
    """``W_U``, its bias, and the cap of logits, from the end of the stream to what the twin gives."""
    run, twin = streams.run, streams.twin
    if "unembed.hook_out" not in run.seen:
        return None, None, None
    module: Any = twin.unembed.original_component
    W_U, b_U = module.weight.detach().T, getattr(module, "bias", None)
    with torch.no_grad(), evaluating(twin), twin.evaluated("slots"):
        theirs = rows(run_bridge(twin, run.inputs))
    ours = rows(run.reads[END]) @ W_U.double()
    ours = ours if b_U is None else ours + b_U.double()
    found: list[tuple[float, float, float | None]] = []
    for cap in (None, *_caps(twin)):
        if ours.shape == theirs.shape and (cap is None or float(theirs.abs().max()) < cap):
            inside = theirs if cap is None else cap * (theirs / cap).atanh()
            factor = float((inside * ours).sum() / ours.square().sum())
            found.append((float((inside - factor * ours).abs().max() / inside.abs().max()), factor, cap))
    error, factor, cap = min(found, key=lambda candidate: candidate[0], default=(1.0, 1.0, None))
    if not error <= run.tolerance:
        raise refused("the end of the model", "logits that are not x W_U + b_U")
    if abs(factor - 1.0) > 1e-6:
        W_U, b_U = factor * W_U, None if b_U is None else factor * b_U
    return W_U, None if b_U is None else b_U.detach(), cap


def _caps(twin: TwinBridge) -> Iterator[float]:
    """Numbers that configurations call caps of logits."""
    for module in twin.original_model.modules():
        for name, value in vars(getattr(module, "config", None) or object).items():
            if "softcap" in name and isinstance(value, (int, float)) and value > 0:
                yield float(value)


def renamed(streams: Streams, model: Pure) -> Pure:
    """Names that can be read: tokens, positions, x3, L0.A, L1.M for experts, and a norm's path in the network."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for beginning in model.beginnings:
        kind = "tokens" if beginning.name in streams.run.tables else beginning.name
        stem = f"decoder {kind}" if beginning.decoder else kind
        counts[stem] += 1
        names[beginning.name] = stem if counts[stem] == 1 else f"{stem} {counts[stem]}"
    for step in model.sublayers:
        names[step.name] = step.name.replace(".M0.N", ".M") if step.router else network_path(step.name)
    steps = [
        replace(
            step,
            name=names[step.name],
            reads={names[name]: factor for name, factor in step.reads.items()},
            other=None if step.other is None else names[step.other],
        )
        for step in model.sublayers
    ]
    begun = [replace(beginning, name=names[beginning.name]) for beginning in model.beginnings]
    return replace(model, beginnings=begun, sublayers=steps)
