"""Every hook point of a twin, and what TransformerLens, nnsight, nnterp and interp-engine call what passes there."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from allheads.models.observe import output_kind
from allheads.result import Result
from allheads.twin.network_names import network_names
from allheads.twin.point_names import GATED_VALUE, KINDS, NORMS, STREAMS, Meaning

if TYPE_CHECKING:
    import pandas

    from allheads.twin.twin import TwinBridge

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
    nnsight, others = network_names(twin)
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
