"""Every hook point of a twin, and what TransformerLens, nnsight, nnterp and interp-engine call what passes there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allheads.models.module_paths import module_paths, passed
from allheads.models.observe import output_kind, probe_inputs, run_network
from allheads.result import Result
from allheads.twin.point_names import GATED_VALUE, KINDS, NORMS, STREAMS, Meaning

if TYPE_CHECKING:
    import pandas

    from allheads.twin.twin import TwinBridge

#: A name in a layer: stack, layer, kind.
_IN_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<kind>.*)")
_NORM = re.compile(r"(?:.*\.)?(?:ln\w*|\w*norm)\.(?P<end>hook_\w+)")
_ENDS = ("hook_in", "hook_out")
_UNKNOWN = Meaning("", "")
#: The largest difference, of the size, between what passes in a twin and in its source; the same for 16 bits.
_CLOSE, _CLOSE_16 = 1e-3, 3e-2


@dataclass(frozen=True)
class HookPointNames:
    """One hook point: its name in TransformerLens and here, what passes, its axes, and its names elsewhere."""

    point: str
    what: str
    shape: str
    nnsight: str
    nnterp: str
    interp_engine: str


@dataclass(frozen=True, repr=False)
class HookPoints(Result):
    """A row for every name of a hook point; two names of one point follow one another.

    ``point`` is the name in TransformerLens and here. Other names are of the source's model: ``nnsight`` after a
    ``LanguageModel``, ``nnterp`` (1.3) after a ``StandardizedTransformer``, ``interp_engine`` (1.14) as a key of its
    cache. They are empty where nothing there is the same tensor, as found by running this model. Those tools may show
    heads side by side in one axis, or behind positions, and positions once for all prompts.
    """

    model: str
    names: list[HookPointNames]

    def facts(self) -> dict[str, Any]:
        """The model, and how many names there are."""
        return {"model": self.model, "points": len(self.names)}

    def to_dataframe(self) -> pandas.DataFrame:
        """Columns: point, what, shape, nnsight, nnterp, interp_engine."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.names], columns=list(HookPointNames.__annotations__))


def hook_points(twin: TwinBridge) -> HookPoints:
    """The hook points of a twin; see `TwinBridge.points`. Runs it and its network once, on a short random input."""
    groups: dict[int, list[str]] = {}
    for name, point in twin.hook_dict.items():
        groups.setdefault(id(point), []).append(name)
    nnsight, others = _names_elsewhere(twin)
    # What nnterp and interp-engine name are decoders of transformers that give logits.
    network = getattr(twin.original_model, "config", None) is not None
    decoder = network and "blocks.0.hook_in" in twin.hook_dict and output_kind(twin) == "logits"
    rows = []
    for names in groups.values():
        first, gated = names[0], names[0].replace(".in.", ".gate.") in twin.hook_dict
        for name in names:
            meaning = _meaning(name, names, gated)
            match = _IN_LAYER.fullmatch(name)
            stack = match is None or match["stack"] == "blocks"
            # Inside of an MLP, they name modules; elsewhere they may split what one module gives.
            there = first in nnsight or not (first in others or _kind(first).startswith("mlp."))
            texts = [text.format(match and match["layer"]) for text in meaning[2:]]
            known = texts if decoder and stack and there else [""] * len(texts)
            rows.append(HookPointNames(name, *meaning[:2], nnsight.get(first, ""), *known))
    return HookPoints(twin.cfg.model_name, rows)


def _meaning(name: str, names: list[str], gated: bool) -> Meaning:
    """What passes at a point with these names, of which this is one."""
    kind = _kind(names[0])
    if kind == "mlp.in.hook_out" and gated:
        return GATED_VALUE
    known = KINDS.get(kind, _UNKNOWN)
    streams = [STREAMS[_kind(other)] for other in (name, *names) if _kind(other) in STREAMS]
    if _kind(name) in STREAMS or (streams and known is _UNKNOWN):
        return streams[0]
    if known is _UNKNOWN and (norm := _NORM.fullmatch(kind)):
        return NORMS.get(norm["end"], _UNKNOWN)
    return known


def _kind(name: str) -> str:
    """A name without its stack and layer, and without the number of an expert."""
    match = _IN_LAYER.fullmatch(name)
    return re.sub(r"\.\d+", "", match["kind"]) if match else name


def _names_elsewhere(twin: TwinBridge) -> tuple[dict[str, str], set[str]]:
    """``model.layers[3].mlp.output``, by the point ``blocks.3.mlp.hook_out``: where both pass the same in one run.

    And the points whose modules pass something else.
    """
    inputs = probe_inputs(twin.original_model, twin.cfg)
    points = {f"{name}.{end}": (path, end) for name, path in module_paths(twin).items() for end in _ENDS}
    with _unedited(twin):
        ours = _passed_here(twin, points.keys() & twin.hook_dict.keys(), inputs)
    theirs = passed(twin, inputs)
    made, different = {}, set()
    for point in sorted(ours.keys() & {point for point, place in points.items() if place in theirs}):
        path, end = points[point]
        there = theirs[path, end]
        if _same(ours[point], there.value):
            ending = "input" if end == "hook_in" else "output[0]" if there.in_tuple else "output"
            made[point] = re.sub(r"\.(\d+)", r"[\1]", path) + f".{ending}"
        else:
            different.add(point)
    return made, different


def _passed_here(twin: TwinBridge, points: Iterable[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of what passes these points: some networks add to it in place."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            if isinstance(value, Tensor):
                found[name] = value.clone()

        return keep

    with torch.no_grad(), twin.hooks(fwd_hooks=[(name, keeper(name)) for name in points]):
        run_network(twin.original_model, inputs)
    return found


@contextmanager
def _unedited(twin: TwinBridge) -> Iterator[None]:
    """The twin as it was converted, for a while: names are of its source."""
    edited = [bank.edited for bank in twin.banks]
    try:
        for bank in twin.banks:
            bank.edited = None
        yield
    finally:
        for bank, heads in zip(twin.banks, edited, strict=True):
            bank.edited = heads


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to rounding. Heads may stand side by side there, or behind positions; positions once for all prompts."""
    if theirs.ndim == ours.ndim and theirs.shape[:1] == (1,):
        theirs = theirs.expand(len(ours), *theirs.shape[1:])
    if ours.ndim == 4 and ours.shape != theirs.shape == ours.transpose(1, 2).shape:
        ours = ours.transpose(1, 2)
    if ours.numel() != theirs.numel():
        return False
    a, b = (value.double().flatten() for value in (ours, theirs))
    close = _CLOSE_16 if ours.dtype in (torch.float16, torch.bfloat16) else _CLOSE
    return bool((a - b).norm() <= close * b.norm())
