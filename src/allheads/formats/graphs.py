"""Graphs in a folder that circuit-tracer's local page serves: a file each, and the list of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.neuronpedia.writing import as_neuronpedia
from allheads.disk import checked_name, checked_path, named_path, write_whole
from allheads.errors import AllHeadsError
from allheads.untrusted import read_json

#: The list of graphs in a folder, and what of a graph's metadata stands there.
_LIST = "graph-metadata.json"
_LISTED = ("slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold", "schema_version")


def write_graph(graph: AttributionGraph, folder: str | Path, name: str) -> Path:
    """Write a graph as ``name.json`` into a folder, which is made if need be, and add it to the folder's list.

    ``circuit-tracer start-server --graph_file_dir FOLDER`` shows what is there; Neuronpedia takes the file.

    Raises `AllHeadsError` for a name that is none for a file, a folder that cannot be written, a list there that is
    none, and as `AttributionGraph.save`.

    >>> import allheads as ah
    >>> write_graph(ah.graph(twin, "Mary and John", " Mary", budget=5), "graphs", "mary").name
    'mary.json'
    """
    target = named_path(folder)
    if f"{checked_name(name)}.json" == _LIST:
        raise AllHeadsError("a name of letters, digits, - and _", repr(name), "That is the list of all.")
    known = _listed(target)
    content = as_neuronpedia(graph, name)
    entry = {key: content["metadata"][key] for key in _LISTED}
    graphs = [*(other for other in known if other.get("slug") != name), entry]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AllHeadsError("a folder to write into", f"{folder}: {error.strerror}", "Name another.") from None
    made, listed = checked_path(target / f"{name}.json"), checked_path(target / _LIST)
    write_whole(made, json.dumps(content, indent=1, allow_nan=False))
    write_whole(listed, json.dumps({"graphs": graphs}, indent=1, allow_nan=False))
    return made


def _listed(folder: Path) -> list[dict[str, Any]]:
    """What is in a folder's list already."""
    path = folder / _LIST
    if not path.exists():
        return []
    try:
        return read_json(path, dict[str, list[dict[str, Any]]])["graphs"]
    except (OSError, ValueError, KeyError) as error:
        reason = f"{path}: {'no graphs in it' if isinstance(error, KeyError) else error}"
        raise AllHeadsError("a list of graphs", reason, "Move it away, or name another folder.") from None
