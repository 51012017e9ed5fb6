"""The streams of a twin, found by a run that is cut into segments: what begins them, and who reads a sum of whom.

    read  =  sum over writes of factor * write  +  rest

The rest is what the cut does not show. If it is the same for two texts it is a table of positions; in a model of images
or sounds it is what its layers begin with; anything else cannot be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.gates.activations import ACTIVATIONS, Activation
from allheads.heads.mixture import MixtureBank
from allheads.models.compat import network_path, wrappers
from allheads.models.norms import known_norm, norm_modules
from allheads.models.observe import evaluating, probe_inputs, run_bridge, watching
from allheads.pure.runner import Beginning, Sublayer
from allheads.twin.segments import END, CutRun, cut_run, summands, two_rows
from allheads.twin.twin import TwinBridge

#: A sum of what others gave, by their names.
Sum = dict[str, float]


@dataclass
class Streams:
    """Beginnings, and steps in order: every leaf that the end depends on, and sums that several read."""

    twin: TwinBridge
    run: CutRun
    #: What leaves write ``[row pos d_model]``; those of heads by their output weights.
    writes: dict[str, Tensor]
    weights: Mapping[str, Tensor]
    beginnings: list[Beginning] = field(default_factory=list)
    steps: list[Sublayer] = field(default_factory=list)
    n_ctx: int = 0
    #: Dense layers that end in an activation, by path: neurons without an output projection.
    activated: dict[str, Activation] = field(default_factory=dict)
    _sums: dict[str, Sum] = field(default_factory=dict)
    _rests: dict[str, Tensor] = field(default_factory=dict)
    _decoder: dict[str, bool] = field(default_factory=dict)
    _found: dict[str, Sum] = field(default_factory=dict)
    _read: dict[str, Sum] = field(default_factory=dict)
    #: The only position of the stream that the end reads.
    position: int | None = None

    def found(self, sink: str) -> Sum:
        """The writes that are read under a name."""
        if sink not in self._found:
            found = summands(self.run, sink, self.weights.get)
            self._found[sink] = {leaf: self._near(factor) for leaf, factor in found.items() if leaf in self.writes}
            if not self._found[sink] and sink in self.run.norms:
                self._found[sink] = self._activated(sink)
        return self._found[sink]

    def reads(self, sink: str) -> Sum:
        """The same with its rest, which becomes a beginning. Raises `AllHeadsError` for another rest."""
        if sink not in self._read:
            self._read[sink] = self.found(sink) | self._explained(sink, self.found(sink))
        return self._read[sink]

    def source(self, sink: str) -> Sum:
        """The same by as few names as there are: of a write, or of a sum that becomes a step."""
        wanted = self.reads(sink)
        if len(wanted) == 1:
            return wanted
        ratio, known = self._largest_part(wanted)
        rest = {} if known is None else {known: ratio}
        rest |= {leaf: f for leaf, f in wanted.items() if known is None or leaf not in self._sums[known]}
        if len(rest) > 1:
            name = f"x{len(self._sums)}"
            self.steps.append(Sublayer(name, reads=rest))
            self._sums[name] = wanted
            return {name: 1.0}
        return rest

    @property
    def given(self) -> Float[Tensor, "2 pos d_model"] | None:
        """What the layers begin with in a model of images or sounds, for both inputs."""
        return self._rests.get("given")

    def begin(self, leaf: str) -> None:
        """Let the embeddings of tokens be a beginning."""
        table, factor = self.run.tables[leaf]
        ids = self.run.inputs.get("decoder_input")
        seen = self.run.leaves[leaf]
        decoder = ids is not None and bool((factor * table[ids] - seen).norm() <= 1e-3 * seen.norm())
        self._decoder[leaf] = decoder
        table = table if factor == 1.0 else factor * table
        self.beginnings.append(Beginning(leaf, table, decoder=decoder))

    def note(self, leaf: str, sink: str) -> None:
        """Remember which stream a leaf belongs to: that of what it reads."""
        self._decoder[leaf] = any(self._decoder.get(source, False) for source in self.reads(sink))

    def _activated(self, sink: str) -> Sum:
        """What a dense layer beside a norm gives it through an activation, as the heads that unembed have them."""
        y = rows(self.run.reads[sink])
        for path, output in self.run.seen.items():
            if path in self.run.reads and _parent(path) == _parent(sink) and output.shape[-1] == y.shape[-1]:
                for activation in ACTIVATIONS.values():
                    off = activation(rows(output)) - y
                    if float(off.abs().max()) <= 1e-2 * self.run.tolerance * float(y.abs().max()):
                        self.writes[path], self.activated[path] = y, activation
                        return {path: 1.0}
        return {}

    def _near(self, factor: float) -> float:
        eps = torch.finfo(self.run.reads[END].dtype).eps
        return 1.0 if abs(factor - 1.0) < 64 * eps else factor

    def _largest_part(self, wanted: Sum) -> tuple[float, str | None]:
        """A sum that is in another one, up to a factor."""
        for name, known in reversed(self._sums.items()):
            ratios = [wanted.get(leaf, 0.0) / factor for leaf, factor in known.items()]
            if ratios[0] and all(abs(ratio - ratios[0]) <= 1e-6 * abs(ratios[0]) for ratio in ratios):
                return self._near(ratios[0]), name
        return 1.0, None

    def _explained(self, sink: str, found: Sum) -> Sum:
        """What is read and was not written by a leaf."""
        x = rows(self.run.reads[sink])
        written: Any = sum((factor * self.writes[leaf] for leaf, factor in found.items()), torch.zeros_like(x))
        if sink == END and x.shape[1] == 1 < written.shape[1]:
            self.position = int((x - written).norm(dim=(0, 2)).argmin())
            written = written[:, self.position][:, None]
        if written.shape != x.shape:
            raise self._unsaid(sink)
        rest = x - written
        size = max(100 * torch.finfo(self.run.reads[END].dtype).eps, 1e-10) * float(x.abs().max())
        if float(rest.abs().max()) <= size:
            return {}
        for name, known in self._rests.items():
            if known.shape == rest.shape and self._decoder[name] == self._of_decoder(found):
                factor = float((rest * known).sum() / known.square().sum())
                if float((rest - factor * known).abs().max()) <= size:
                    return {name: self._near(factor)}
        return {self._new_rest(sink, found, rest, size): 1.0}

    def _of_decoder(self, found: Sum) -> bool:
        return any(self._decoder.get(leaf, False) for leaf in found)

    def _new_rest(self, sink: str, found: Sum, rest: Tensor, size: float) -> str:
        """A beginning beside the tokens: positions, or what the layers of a model of images or sounds begin with."""
        decoder = self._of_decoder(found)
        if len(rest) == 2 and float((rest[0] - rest[1]).abs().max()) <= size:
            rows = self._positions(sink, found, rest)
            name, by = f"positions{len(self._rests) or ''}", "position"
        elif not self.run.tables and "given" not in self._rests and not found and rest.ndim == 3:
            name, by, rows = "given", "token", None
            self.n_ctx = max(self.n_ctx, rest.shape[1])
        else:
            raise self._unsaid(sink)
        self._rests[name], self._decoder[name] = rest, decoder
        self.beginnings.append(Beginning(name, rows, by, decoder))
        return name

    def _positions(self, sink: str, found: Sum, rest: Tensor) -> Float[Tensor, "n_ctx d_model"]:
        """What stands at every position up to the last that the model has."""
        if float((rest - rest[:, :1]).abs().max()) <= 1e-12 * float(rest.abs().max()):
            return rest[0, :1].repeat(self.n_ctx, 1)
        if not set(found) <= set(self.run.tables):
            raise self._unsaid(sink)
        for length in range(self.n_ctx, max(1, self.n_ctx - 8), -1):
            inputs = texts(self.twin, length)
            x = first_read(self.run, sink, inputs)
            if x is not None:
                self.n_ctx = length
                ids = inputs["decoder_input" if self._of_decoder(found) else "input"]
                tables = (
                    (factor * self.run.tables[leaf][1], self.run.tables[leaf][0]) for leaf, factor in found.items()
                )
                return x - sum(factor * table[ids[0]].double() for factor, table in tables)
        raise self._unsaid(sink)

    def _unsaid(self, sink: str) -> AllHeadsError:
        beside = f", in layers with {', '.join(self.twin.untouched)}"[:160] if self.twin.untouched else ""
        return AllHeadsError(
            "streams that are sums of heads, neurons, norms and embeddings",
            f"something else in what {'the end' if sink == END else network_path(sink)} reads{beside}",
            "This model cannot be exported.",
        )


def rows(x: Tensor) -> Float[Tensor, "2 pos d_model"]:
    """What passes in a run on two texts, text by text, in float64."""
    return x.detach().double().reshape(2, -1, x.shape[-1])


def texts(twin: TwinBridge, length: int, count: int = 1) -> dict[str, Tensor]:
    """Random texts of ordinary words, as the bridge takes them; an image or a sound remains one."""
    network, draw = twin.original_model, torch.Generator().manual_seed(length)
    names = {"input_ids": "input", "decoder_input_ids": "decoder_input"}
    probe = {names.get(name, "input"): value for name, value in probe_inputs(network, twin.cfg).items()}

    def drawn(ids: Tensor) -> Tensor:
        if ids.is_floating_point():
            return ids
        return ids[0, torch.randint(ids.shape[1], (count, length), generator=draw)]

    return {name: drawn(value) for name, value in probe.items()}


class _Enough(Exception):  # noqa: N818 - it says what happened
    """What was asked for has been seen."""


def first_read(run: CutRun, sink: str, inputs: Mapping[str, Tensor]) -> Float[Tensor, "pos d_model"] | None:
    """What is read under a name when it is first called, in another run; None if the twin does not take the inputs."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
        raise _Enough

    handle = _module(run, sink).register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad(), evaluating(run.twin):
            run_bridge(run.twin, inputs)
    except _Enough:
        return seen[0].detach().double().reshape(-1, seen[0].shape[-1])
    except Exception:  # too many positions show in many ways
        return None
    finally:
        handle.remove()
    return None


def _module(run: CutRun, sink: str) -> Any:
    """The module, or hook point, that something is read by."""
    if sink in run.norms:
        inner = run.twin.original_model.get_submodule(sink)
        return wrappers(run.twin.original_model).get(id(inner), inner)
    for layer in run.twin.layers:
        if f"{layer.location.stem}.N" == sink:
            return layer.bank
    for (stem, kind), heads in run.twin.index.attention.items():
        if sink.startswith(f"{stem}.{kind}."):
            points, prefix = run.twin.hook_dict, heads.location.prefix
            inner = f"{prefix}{sink[-1].lower()}.hook_in"
            return points[inner if inner in points else f"{prefix}hook_in"]
    return run.twin.hook_dict["unembed.hook_in"]


def cut(twin: TwinBridge) -> CutRun:
    """A run of the twin on two texts, cut into segments.

    ``seen`` has the weights of experts ``[row expert]`` too, under the name of the first, and what dense layers beside
    a norm give, under their paths.
    """
    network, seen = twin.original_model, dict[str, Tensor]()
    dense: dict[str, Tensor] = {}
    norms = {network_path(path): module for path, module in norm_modules(network)}
    with watching(network, norms) as activations, evaluating(twin), torch.no_grad():
        run_bridge(twin, two_rows(twin))
    for path, read in activations.inputs.items():  # a hook on a norm would be there in the copy that is measured
        known_norm(norms[path], read[0].shape[-1])
    with twin.evaluated("slots"), ExitStack() as stack:
        for module, hook in _more_hooks(twin, norms, dense, seen):
            stack.callback(module.register_forward_hook(hook).remove)
        run = cut_run(twin)
    run.seen |= seen
    run.reads |= dense
    return run


def _more_hooks(
    twin: TwinBridge, norms: Iterable[str], dense: dict[str, Tensor], seen: dict[str, Tensor]
) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
    def routed(name: str, count: int) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Any, ...], __: Tensor) -> None:
            if len(args) == 3:
                seen[name] = torch.zeros(len(args[0]), count).to(args[2]).scatter_add(1, args[1], args[2]).double()

        return look

    def read(path: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            dense[path], seen[path] = args[0], output.detach()

        return look

    network = twin.original_model
    names = {id(layer.bank): f"{layer.location.stem}.N" for layer in twin.layers}
    for module in network.modules():
        if isinstance(module, MixtureBank):
            yield module, routed(names[id(next(iter(module)))], len(module))
    beside = {_parent(path) for path in norms}
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear) and _parent(path) in beside:
            yield module, read(path)


def _parent(path: str) -> str:
    return network_path(path).rpartition(".")[0]


def reached(streams: Streams, sinks: Callable[[str], list[str]]) -> set[str]:
    """The leaves that the end depends on, where ``sinks`` are what a leaf is made of."""
    found: set[str] = set()
    open_ends = list(streams.found(END))
    while open_ends:
        leaf = open_ends.pop()
        if leaf not in found:
            found.add(leaf)
            open_ends += [source for sink in sinks(leaf) for source in streams.found(sink)]
    return found
