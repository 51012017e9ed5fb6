"""What lies between two sublayers: through which norms they read and write, and who has written before whom.

The twin is run once on random input, cut into segments (`allheads.twin.segments`): a part is a summand of what another
reads, or of what a norm on the way to it reads. Nothing is inferred from names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.models.attention import Attention, AttentionLayer, read_attention
from allheads.models.norms import Norm
from allheads.models.projections import read_projections
from allheads.twin.labels import Label
from allheads.twin.scores import as_they_carry, as_they_turn
from allheads.twin.segments import END, CutRun, cut_run, summands
from allheads.twin.sites import Site, sites
from allheads.twin.twin import TwinBridge

Side = Literal["Q", "V"]
#: Factors and norms on the way from a write to a read: each norm reads the stream times its factor.
Steps = tuple[tuple[float, Norm | None], ...]


@dataclass(frozen=True)
class ResidualBranch:
    """The heads or neurons of one sublayer, beside the stream; an expert is one.

    It reads the stream through ``before``, and adds to it through ``after``; None is no norm. ``attention`` are the
    weights of ordinary heads, None where these are not there; ``scores`` says that its patterns are what they give,
    up to what positions alone add, and ``values`` that it carries
    ``x W_V + b_V`` along them, by gates or norms that ``attention`` names.
    """

    site: Site
    before: Norm | None
    after: Norm | None
    attention: Attention | None = None
    scores: bool = False
    values: bool = False
    bank: HeadBank | None = None

    @property
    def name(self) -> str:
        """What its labels begin with, less the kind: ``L3``, ``L3.M2``."""
        return self.site.location.stem


@dataclass(frozen=True)
class Wiring:
    """Sublayers of a twin, by what their labels begin with (``L3.A``, ``L3.M2.N``), and the stream between them.

    >>> wiring = read_wiring(twin)
    >>> len(wiring.of_kind(True)), wiring.attention_branch(3).name
    (4, 'L3')
    """

    twin: TwinBridge
    branches: Mapping[str, ResidualBranch]
    #: Tables of embeddings by leaf, with their factors.
    tables: Mapping[str, tuple[Float[Tensor, "d_vocab d_model"], float]]
    #: The unembedding, where logits are what it makes of the end of the stream.
    W_U: Float[Tensor, "d_model d_vocab"] | None
    _parts: Mapping[str, str]
    _edges: Mapping[str, Mapping[str, float]]
    _norms: Mapping[str, Norm | None]
    _known: dict[tuple[str, str], Steps | None] = field(default_factory=dict)

    def branch(self, label: Label) -> ResidualBranch:
        """The sublayer of a head or neuron. Raises `AllHeadsError` for one that did not run, or has no stream."""
        name = f"{label.stem}.{label.kind}"
        if name not in self.branches:
            raise AllHeadsError(
                "a part that stands beside a stream, and runs on random input", f"{name}, which does not", "Not read."
            )
        return self.branches[name]

    def attention_branch(self, layer: int) -> ResidualBranch:
        """Attention of a layer of a twin of one stack."""
        return self.branch(Label(f"L{layer}", "A", 0))

    def of_kind(self, neurons: bool) -> list[ResidualBranch]:
        """All sublayers of neurons, or of heads."""
        return [branch for branch in self.branches.values() if (branch.site.kind == "N") == neurons]

    def norms(self, writer: ResidualBranch, reader: ResidualBranch, side: Side = "Q") -> tuple[Norm, ...] | None:
        """The norms from the stream that one has written into to what another reads; None if it does not reach it.

        The writer's own norm ``after`` is left out. Raises `AllHeadsError` where it reaches it in several ways, and
        through a norm of an unknown kind.
        """
        steps = self.steps(self._parts[writer.site.name], self._sink(reader, side))
        if steps is None:
            return None
        norms = [norm for _, norm in steps if norm is not None]
        return tuple(norms[1:] if writer.after is not None else norms)

    def tokens(self, reader: ResidualBranch, side: Side = "Q") -> tuple[Tensor, Steps]:
        """The embeddings that a sublayer reads, and how. Raises `AllHeadsError` where it reads none as they are."""
        for leaf, (table, factor) in self.tables.items():
            if (steps := self.steps(leaf, self._sink(reader, side))) is not None:
                return table, ((factor * steps[0][0], steps[0][1]), *steps[1:])
        raise AllHeadsError(
            "a stream that begins with embeddings of tokens, W_E",
            f"another beginning of that which {reader.site.name} reads",
            "Composition can be read.",
        )

    def to_logits(self, writer: ResidualBranch) -> tuple[tuple[Norm, ...], Tensor]:
        """Norms from a write to the unembedding, and this. Raises `AllHeadsError` where logits are something else."""
        steps = None if self.W_U is None else self.steps(self._parts[writer.site.name], END)
        if steps is None or self.W_U is None:
            raise AllHeadsError(
                "a stream that ends in logits, by norms and W_U",
                f"another end of that into which {writer.site.name} writes",
                "Composition can be read.",
            )
        return tuple(norm for _, norm in steps if norm is not None), self.W_U

    def steps(self, leaf: str, sink: str) -> Steps | None:
        """Factors and norms from a leaf to a sink, the last factor with None; None if there is no way."""
        if (leaf, sink) not in self._known:
            ways: list[Steps] = []
            for source, factor in self._edges.get(sink, {}).items():
                if source == leaf:
                    ways.append(((factor, None),))
                elif source in self._norms and (steps := self.steps(leaf, source)) is not None:
                    norm = self._norms[source]
                    if norm is None:
                        raise AllHeadsError("RMSNorm or LayerNorm in the stream", f"another at {source}", "Not read.")
                    ways.append((*steps[:-1], (steps[-1][0], norm), (factor, None)))
            if len(ways) > 1:
                raise AllHeadsError("one way from a write to a read", f"several from {leaf} to {sink}", "Not read.")
            self._known[leaf, sink] = ways[0] if ways else None
        return self._known[leaf, sink]

    def _sink(self, reader: ResidualBranch, side: Side) -> str:
        name = self._parts[reader.site.name]
        return name if reader.site.kind == "N" else f"{name}.{side}"


def read_wiring(twin: TwinBridge) -> Wiring:
    """The wiring of a twin, whatever its stacks of layers are.

    Raises `AllHeadsError` for parts that run more than once.

    >>> [branch.name for branch in read_wiring(twin).of_kind(False)]
    ['L0', 'L1', 'L2', 'L3']
    """
    run = cut_run(twin)
    layers = {f"{layer.location.stem}.{layer.kind}": layer for layer in twin.index.attention.values()}
    attention = {name: _weights(twin, layer) for name, layer in layers.items()}
    outputs = {name: weights.W_O.detach() for name, weights in attention.items() if weights is not None}
    shown = {leaf: leaf not in layers or leaf in outputs for leaf in run.leaves}
    edges = {
        sink: {leaf: f for leaf, f in summands(run, sink, outputs.get).items() if shown[leaf]} for sink in run.reads
    }
    if run.twice:
        raise AllHeadsError("parts that run once", f"{', '.join(sorted(run.twice))[:100]} run again", "Not read.")
    branches = {}
    for site in sites(twin):
        leaf = run.parts[site.name]
        if leaf in run.leaves:
            branches[site.name] = _branch(run, edges, site, attention.get(site.name))
    banks = {f"{layer.location.stem}.N": layer.bank for layer in twin.layers}
    branches = {name: _with_bank(branch, banks.get(name)) for name, branch in branches.items()}
    return Wiring(twin, branches, run.tables, _unembedding(run), run.parts, edges, run.norms)


def _weights(twin: TwinBridge, layer: AttentionLayer) -> Attention | None:
    try:
        return read_attention(twin, layer)
    except AllHeadsError:
        return read_projections(layer)


def _branch(
    run: CutRun, edges: Mapping[str, Mapping[str, float]], site: Site, weights: Attention | None
) -> ResidualBranch:
    """What a sublayer reads and writes through, and what its attention is. A norm that only it is behind is its own."""
    leaf, heads = run.parts[site.name], site.kind != "N"
    sources = edges.get(f"{leaf}.Q" if heads else leaf, {})
    before = run.norms.get(next(iter(sources), "")) if len(sources) == 1 else None
    behind = [name for name in run.norms if list(edges.get(name, ())) == [leaf]]
    after = run.norms[behind[0]] if len(behind) == 1 else None
    if weights is None:
        return ResidualBranch(site, before, after)
    carrying, turning = as_they_carry(run, site, weights), as_they_turn(run, site, weights)
    read = turning or weights
    if carrying is not None:
        read = replace(read, norm_V=carrying.norm_V, gated=carrying.gated)
    return ResidualBranch(site, before, after, read, turning is not None, carrying is not None)


def _with_bank(branch: ResidualBranch, bank: HeadBank | None) -> ResidualBranch:
    return replace(branch, bank=bank)


def _unembedding(run: CutRun) -> Tensor | None:
    """W_U, if two rows of logits differ by what it makes of the difference of the streams, up to a factor."""
    module = getattr(getattr(run.twin, "unembed", None), "original_component", None)
    weight, logits, x = getattr(module, "weight", None), run.seen.get("unembed.hook_out"), run.reads[END]
    if weight is None or logits is None or weight.ndim != 2:
        return None
    W_U = weight.detach().T
    if x.shape[-1] != len(W_U) or logits.shape[-1] != W_U.shape[1] or len(x) != 2:
        return None
    step, ours = (logits[0] - logits[1]).double(), (x[0] - x[1]).detach().double() @ W_U.double()
    factor = (step * ours).sum() / ours.square().sum().clamp_min(1e-300)
    return W_U if factor > 0 and (step - factor * ours).norm() <= 4 * run.tolerance * step.norm() else None
