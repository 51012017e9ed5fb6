"""Every hook point of a twin, and what TransformerLens, nnsight, nnterp and interp-engine call what passes there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from allheads.models.bridge import TransformerBridge
from allheads.models.module_paths import module_paths
from allheads.models.observe import output_kind, probe_inputs, run_network
from allheads.result import Result
from allheads.twin.capture import capturing
from allheads.twin.point_names import GATED_VALUE, KINDS, NORMS, STREAMS, Meaning

if TYPE_CHECKING:
    import pandas

#: A name in a layer: stack, layer, kind.
_IN_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<kind>.*)")
_NORM = re.compile(r"(?:.*\.)?(?:ln\w*|\w*norm)\.(?P<end>hook_\w+)")
_UNKNOWN = Meaning("", "")


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
    cache. They are empty where nothing there is the same tensor. Those tools may show heads side by side in one axis,
    and positions once for all prompts.
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


def hook_points(twin: TransformerBridge) -> HookPoints:
    """The hook points of a twin; see `TwinBridge.points`. Runs it once, on a short random input."""
    groups: dict[int, list[str]] = {}
    for name, point in twin.hook_dict.items():
        groups.setdefault(id(point), []).append(name)
    nnsight = _nnsight_names(twin, module_paths(twin))
    # What nnterp and interp-engine name are decoders of transformers that give logits.
    decoder = bool(nnsight) and "blocks.0.hook_in" in twin.hook_dict and output_kind(twin) == "logits"
    rows = []
    for names in groups.values():
        there = nnsight.get(names[0], "")
        for name in names:
            meaning = _meaning(name, names, nnsight)
            match = _IN_LAYER.fullmatch(name)
            named = decoder and (match is None or match["stack"] == "blocks")
            others = [text.format(match and match["layer"]) if named else "" for text in meaning[2:]]
            rows.append(HookPointNames(name, *meaning[:2], there, *others))
    return HookPoints(twin.cfg.model_name, rows)


def _meaning(name: str, names: list[str], nnsight: Mapping[str, str]) -> Meaning:
    """What passes at a point with these names, of which this is one."""
    kind = _kind(names[0])
    if kind == "mlp.in.hook_out" and names[0].replace(".in.", ".gate.") in nnsight:
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


def _nnsight_names(twin: TransformerBridge, paths: Mapping[str, str]) -> dict[str, str]:
    """``model.layers[3].mlp.output``, by the point ``blocks.3.mlp.hook_out``; points that never fire have no name."""
    points = {f"{name}.{end}": name for name in paths for end in ("hook_in", "hook_out")}
    tuples: set[str] = set()
    handles = [twin.get_submodule(name).register_forward_hook(_noter(name, tuples)) for name in paths]
    try:
        with torch.no_grad(), capturing(twin, points.keys() & twin.hook_dict.keys()) as fired:
            run_network(twin.original_model, probe_inputs(twin.original_model, twin.cfg))
    finally:
        for handle in handles:
            handle.remove()
    made = {}
    for point, name in points.items():
        if point in fired:
            module = re.sub(r"\.(\d+)", r"[\1]", paths[name])
            end = "input" if point.endswith("hook_in") else "output[0]" if name in tuples else "output"
            made[point] = f"{module}.{end}"
    return made


def _noter(name: str, tuples: set[str]) -> Any:
    """A hook that notes whether a module gives a tuple, whose first entry is what the hook point passes."""

    def note(module: Any, args: Any, output: Any) -> None:
        if isinstance(output, tuple):
            tuples.add(name)

    return note
