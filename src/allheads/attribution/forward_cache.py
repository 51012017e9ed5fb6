"""One forward pass whose activations are kept in the graph, so that gradients at them can be taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from allheads.attribution.dependence import depends_on
from allheads.errors import AllHeadsError
from allheads.twin.autoencoder import SparseAutoencoder
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.sites import Site, sites
from allheads.twin.softmax import SCORES, scores_shown
from allheads.twin.twin import TwinBridge

#: What the unembedding reads.
UNEMBEDDED = "unembed.hook_in"


class _Written(torch.autograd.Function):
    """What a sublayer writes, as it is; gradients do not go back into it while the cache follows the ``stream_only``.

    Undefined gradients, unlike zeros, cost nothing on their way: PyTorch's own operations pass them on uncomputed.
    """

    @staticmethod
    def forward(ctx: Any, written: Tensor, cache: ForwardCache) -> Tensor:
        ctx.cache = cache
        ctx.set_materialize_grads(False)
        return written.view_as(written)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        return None if ctx.cache.stream_only else gradient, None


@dataclass
class ForwardCache:
    """The tensors of one forward pass, by hook point: ``activations``.

    Embeddings are leaves of its graph, and so is the beginning of every stack of layers that no embedding reaches: the
    patches of an image, the frames of a sound. Where it is ``cut``, heads and neurons are too: what they write is a
    leaf, and what they would have written, as a function of the leaves before them, is among ``uncut``. A gradient then
    knows direct paths only: along the stream, through no other head or neuron. Where it is ``empty``, leaves are zero.
    Where it is not cut, `direct` takes such a gradient of what has run.
    """

    twin: TwinBridge
    extra: tuple[str, ...] = ()
    cut: bool = False
    empty: bool = False
    stream_only: bool = field(default=False, init=False)
    #: Where stacks begin that no embedding reaches, once another pass has found them.
    begins: tuple[str, ...] | None = None
    #: Sparse autoencoders that split what passes a hook point, and which of their latents are open on this prompt.
    autoencoders: tuple[SparseAutoencoder, ...] = ()
    opened: dict[str, Tensor] = field(default_factory=dict)
    leaves: dict[str, Tensor] = field(default_factory=dict)
    uncut: dict[str, Tensor] = field(default_factory=dict)
    activations: dict[str, Tensor] = field(default_factory=dict)
    #: The sublayers that ran. Towers do not where a prompt has nothing for them to see or hear.
    sites: list[Site] = field(default_factory=list)
    _layers: dict[str, int] = field(default_factory=dict)
    _points: dict[str, Site] = field(default_factory=dict)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """What streams begin with, ``[1 pos d_model]`` each, by hook point."""
        return {name: leaf for name, leaf in self.leaves.items() if name not in self._points}

    @property
    def starts(self) -> list[str]:
        """Where streams begin that embeddings reach: hook points before the first layer of each stack."""
        names = [f"{stack}.0.hook_resid_pre" for stack in self.stacks]
        return [name for name in names if name in self.activations and name not in self.leaves]

    @property
    def heads(self) -> list[Site]:
        """The sublayers of ordinary heads."""
        return [site for site in self.sites if site.kind in ("A", "X")]

    @property
    def neurons(self) -> list[Site]:
        """The sublayers of neurons; each expert is one, and the latents of each autoencoder."""
        return [site for site in self.sites if site.scalar]

    @property
    def stacks(self) -> list[str]:
        """The stacks of layers that ran, in the order in which they ended."""
        return list(dict.fromkeys(site.stack for site in reversed(self.sites)))[::-1]

    @property
    def layers(self) -> range:
        """Numbers of the layers of the last stack."""
        return range(self._layers[self.stacks[-1]])

    @property
    def whole(self) -> bool:
        """Is there one stack, which shows its stream before every layer?"""
        return (
            len(self.stacks) == 1 and self.end != UNEMBEDDED and all(name in self.activations for name in self._before)
        )

    @property
    def end(self) -> str:
        """The stream after the last layer of the last stack; or what the unembedding reads, where that is not shown."""
        name = f"{self.stacks[-1]}.{len(self.layers) - 1}.hook_resid_post"
        return name if name in self.activations else UNEMBEDDED

    def cuts(self, stream: str | None = None) -> list[str]:
        """Hook points of the stream before each layer, up to ``stream``, or to the end.

        Where several stacks run, or layers do not show their stream, there are two: a beginning, and that one. All of
        what comes before flows through each of them but the first.
        """
        stream = stream or self.end
        if stream not in self.activations:
            raise self._unread(f"where nothing passes {stream}")
        names = [*self._before, self.end]
        if not self.whole or stream not in names:
            return [next(iter(self.embeddings)), stream]
        return names[: names.index(stream) + 1]

    @property
    def _before(self) -> list[str]:
        return [f"{self.stacks[-1]}.{layer}.hook_resid_pre" for layer in self.layers]

    def cut_anew(self, extra: tuple[str, ...], *, empty: bool = False) -> ForwardCache:
        """A cache for another run of the same prompt, which is cut where this one has seen streams begin."""
        made = ForwardCache(self.twin, extra, cut=True, empty=empty, begins=tuple(self.embeddings))
        made.autoencoders, made.opened = self.autoencoders, self.opened
        return made

    def direct(self, value: Tensor) -> dict[str, Tensor | None]:
        """The gradient at what heads and neurons write, through no other head or neuron, by hook point."""
        points = [site.point for site in self.sites]
        self.stream_only = True
        try:
            found = torch.autograd.grad(
                value, [self.activations[name] for name in points], retain_graph=True, allow_unused=True
            )
        finally:
            self.stream_only = False
        return dict(zip(points, found, strict=True))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what passes the hook points of one run.

        Raises `AllHeadsError` for parts that are not shown one by one, naming the first.
        """
        known, everything = self.twin.hook_dict, self._everything()
        split = {each.hook_point: each for each in self.autoencoders}
        if missing := [name for name in self.extra if name not in known and not name.endswith(SCORES)]:
            raise self._unread(f"without {missing[0]}")
        stacks = dict.fromkeys(site.stack for site in everything)
        self._layers = {s: next(n for n in count() if f"{s}.{n}.hook_resid_pre" not in known) for s in stacks}
        self._points = {site.point: site for site in everything}
        shown = [
            f"{stack}.{layer}.hook_{name}"
            for stack, layers in self._layers.items()
            for layer in range(layers)
            for name in ("resid_pre", "resid_post", "attn_out", "mlp_out")
        ]
        points = (site.point for site in everything)
        names = dict.fromkeys([*EMBEDDINGS, *shown, *points, UNEMBEDDED, *self.extra, *split])
        recorders = [(name, self._recorder(name)) for name in names if name in known]
        recorders += [(name, self._splitter(each)) for name, each in split.items()]
        with scores_shown(self.twin, self.extra, self.activations), self.twin.hooks(fwd_hooks=recorders):
            yield
        if silent := [name for name in self.extra if name not in self.activations]:
            raise self._unread(f"where nothing passes {silent[0]}")
        ran = {point: site for site in everything if (point := site.point) in self.activations}
        self.sites = [ran[name] for name in self.activations if name in ran]
        if not self.sites or not self.leaves:
            raise self._unread("whose heads and embeddings do not show what they write")
        for site in everything:
            self._check(site)

    def _everything(self) -> list[Site]:
        return [*sites(self.twin), *(site for each in self.autoencoders for site in each.sites)]

    def _splitter(self, autoencoder: SparseAutoencoder) -> Callable[..., Tensor]:
        """What passes becomes the sum of latents, error and bias, each in the graph by itself."""
        latents, error = autoencoder.sites
        record = {site.point: self._recorder(site.point) for site in (latents, error)}

        def split(value: Tensor, hook: object) -> Tensor:
            own = autoencoder.like(value)
            opened = self.opened.setdefault(autoencoder.hook_point, own.open(value.detach()))
            # Twice, so that what is written into a latent does not come back as missing in the error.
            found, others = (own.preactivations(value) * opened for _ in range(2))
            found = record[latents.point](found, hook)
            rest = record[error.point]((value - own.decode(others))[:, :, None], hook)[:, :, 0]
            made = own.decode(found) + rest
            # The sum is what passes but for rounding, which would be seen in the logits.
            return made if self.cut else value.detach() + made - made.detach()

        return split

    def _check(self, site: Site) -> None:
        """Refuse parts that ran and were not seen, or seen as something else."""
        ran = {other.stack for other in self.sites}
        if site.point not in self.activations:
            if site.stack in ran:
                raise self._unread(f"where nothing passes {site.point}")
            return
        shape = self.activations[site.point].shape
        length = self.activations.get(f"{site.stack}.{site.location.layer}.hook_resid_pre")
        if shape[2] != site.width:
            what = "neurons" if site.kind == "N" else "heads"
            raise self._unread(f"whose {site.width} {what} are shown as {shape[2]} at {site.point}")
        if length is not None and shape[:2] != length.shape[:2]:
            raise self._unread(f"where {shape[1]} of {length.shape[1]} positions pass {site.point}")

    def _unread(self, how: str) -> AllHeadsError:
        return AllHeadsError(
            "heads and neurons that show what they write at every position",
            f"{self.twin.cfg.architecture} {how}",
            "Attribution does not read this part yet.",
        )

    def _recorder(self, name: str) -> Callable[..., Tensor]:
        def record(value: Tensor, hook: object) -> Tensor:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            if name in self._points and name in self.activations:
                raise self._unread(f"that runs {name} more than once")
            if name in EMBEDDINGS and value.ndim == 2:  # positions, for every row
                value = value[None]
            shape = value.shape
            value = self._points[name].seen(value) if name in self._points else value
            if len(value) != 1 and name in self._points:
                raise self._unread(f"that lays one prompt in {len(value)} rows at {name}")
            if self._begins(name, value) or (self.cut and name in self._points):
                self.uncut[name] = value
                value = torch.zeros_like(value) if self.empty else value.detach().requires_grad_()
                self.leaves[name] = value
            elif name in self._points:
                value = _Written.apply(value, self)
            self.activations[name] = value
            return value.reshape(shape)

        return record

    def _begins(self, name: str, value: Tensor) -> bool:
        """Does a stream begin here?"""
        if name in EMBEDDINGS:
            beside = self.leaves.get(EMBEDDINGS[3 if name.startswith("decoder_") else 0])
            return name in (EMBEDDINGS[0], EMBEDDINGS[3]) or (beside is not None and beside.shape == value.shape)
        if not name.endswith(".0.hook_resid_pre"):
            return False
        return not any(depends_on(value, self.leaves.values())) if self.begins is None else name in self.begins
