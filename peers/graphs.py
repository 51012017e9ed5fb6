"""A graph of SmolLM2 in circuit-tracer: read by its models, scored by its arithmetic, drawn and marked on its page.

circuit-tracer pins older packages than this project has, so that it is taken without them: what is used needs torch and
pydantic. Its page loads d3 and d3-jetpack from the network; here they come from npm, with two lines for what the
published d3-jetpack lacks.

    python peers/graphs.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import torch
from playwright.sync_api import Page, Route, sync_playwright

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.disk import cache_root, replaced_folder

# Of this folder.
from packages import installed  # isort: skip

PACKAGE = "circuit-tracer==0.5.0"
SCRIPTS = {
    "d3.js": ("d3@7.9.0", "package/dist/d3.js"),
    "jetpack_2024-07-20.js": ("d3-jetpack@2.3.0", "package/build/d3-jetpack.cjs"),
    "dagre.min.js": ("dagre@0.8.5", "package/dist/dagre.min.js"),
    "pako.min.js": ("pako@2.1.0", "package/dist/pako.min.js"),
}
#: d3-jetpack as npm has it nests by a function that d3 no longer has, and draws axes by another name.
LACKING = """
d3.nestBy = (list, key) => Array.from(d3.group(list, key), ([k, v]) => Object.assign(v, {key: k}))
const made = d3.conventions
d3.conventions = settings => { const c = made(settings); c.drawAxis = svg => d3.drawAxis({...c, svg}); return c }
"""
TEXT = "When Mary and John went to the store, John gave a drink to"
OTHERS = ("The capital of France is Paris, and that of Italy is Rome.", "def add(a, b): return a + b")
PORT = 8044


def main() -> int:
    """1 if anything differs."""
    tool = installed(PACKAGE, PACKAGE)
    sys.path.append(str(tool))
    twin = ah.convert(ah.load("smollm2-135m"))
    graph = ah.graph(twin, TEXT, (" Mary", " John"), budget=200)
    neurons = [node.label for node in graph.parts if node.kind == "N"]
    with tempfile.TemporaryDirectory() as folder:
        path = ah.formats.write_graph(graph, folder, "mary-or-john")
        cards = ah.formats.write_features(twin, ah.corpus.sweep(twin, [TEXT, *OTHERS]), Path(folder) / "cards", neurons)
        checks = [*models(path), *arithmetic(graph), *page(path, graph, cards)]
    for good, what in checks:
        print(f"{'ok' if good else 'FAILED':8}{what}")
    return int(not all(good for good, _ in checks))


def models(path: Path) -> list[tuple[bool, str]]:
    """Its pydantic models read the file, and make the same node ids as we do of neurons."""
    from circuit_tracer.frontend.graph_models import Model, Node

    file = json.loads(path.read_text())
    read = Model.model_validate(file)
    same = []
    for node in read.nodes:
        if node.feature_type == "cross layer transcoder":
            layer, index, position = map(int, node.node_id.split("_"))
            theirs = Node.feature_node(layer, position, index)
            same.append((theirs.node_id, theirs.feature, theirs.layer) == (node.node_id, node.feature, node.layer))
    return [
        (len(read.nodes) == len(file["nodes"]), f"its models read {len(read.nodes)} nodes, {len(read.links)} links"),
        (all(same) and len(same) > 10, f"{len(same)} neurons have the names that it would give"),
    ]


def arithmetic(graph: AttributionGraph) -> list[tuple[bool, str]]:
    """Its influences, pruned nodes and edges, and scores, with what was left out in the place of its error nodes."""
    from circuit_tracer.attribution.targets import LogitTarget
    from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph

    class Theirs(Graph):
        def __init__(self, weights: torch.Tensor, layers: int) -> None:
            self.adjacency_matrix, self.cfg = weights, type("Config", (), {"n_layers": layers})
            self.selected_features, self.input_tokens = torch.arange(len(parts)), torch.arange(len(tokens))
            self.logit_targets, self.logit_probabilities = [LogitTarget("", 0)], torch.ones(1, dtype=torch.float64)

    parts = [node for node in graph.nodes if node.kind in "AXNC"]
    tokens = [node for node in graph.nodes if node.kind == "E"]
    target, layers = graph.nodes[0], 1 + max(node.layer for node in graph.nodes)

    def made(errors: int) -> Theirs:
        names = [node.name for node in parts] + ["error"] * errors + [node.name for node in (*tokens, target)]
        number = {name: row for row, name in enumerate(names)}
        weights = torch.zeros(len(names), len(names), dtype=torch.float64)
        for edge in graph.edges:
            weights[number[edge.target], number[edge.source]] = edge.weight
        for node in (*parts, target) if errors else ():
            if "V" in node.inflow:
                at = (min(node.layer, layers - 1) * len(tokens)) + node.position
                weights[number[node.name], len(parts) + at] = node.inflow["V"].left_out_size
        return Theirs(weights, layers if errors else 0)

    torch.set_default_dtype(torch.float64)
    ours = graph.influence()
    scores = compute_graph_scores(made(layers * len(tokens)))
    gap = max(abs(theirs - mine) for theirs, mine in zip(scores, (ours.replacement, ours.completeness), strict=True))
    mask, edges, cumulative = prune_graph(made(0), 0.8, 0.98)
    torch.set_default_dtype(torch.float32)
    nodes = [*parts, *tokens, target]
    off = max(
        abs(float(share) - ours.cumulative[n.name])
        for n, share in zip(nodes, cumulative, strict=True)
        if n is not target
    )
    less = graph.pruned(0.8, 0.98)
    kept = {node.name for node, stays in zip(nodes, mask.tolist(), strict=True) if stays}
    between = int(edges.sum())
    return [
        (gap < 1e-12, f"replacement {scores[0]:.6f} and completeness {scores[1]:.6f}, as here within {gap:.0e}"),
        (off < 1e-12, f"cumulative influences as here within {off:.0e}"),
        (
            kept - {"constants"} == {n.name for n in less.nodes} - {"constants"},
            f"{len(less.nodes)} nodes are kept, the same",
        ),
        (between == len(less.edges), f"{between} edges are kept, and {len(less.edges)} here"),
    ]


def page(path: Path, graph: AttributionGraph, cards: Path) -> list[tuple[bool, str]]:
    """Its page draws all nodes and a neuron's card without an error; what is pinned and saved there is pinned here."""
    from circuit_tracer.frontend.local_server import serve

    scripts, errors = _scripts(), []
    server = serve(path.parent, port=PORT)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            shown = browser.new_page(viewport={"width": 1440, "height": 900})
            shown.on("pageerror", lambda error: errors.append(str(error)))
            shown.route("**/*", lambda route: _answer(route, scripts, cards))
            shown.goto(f"http://localhost:{PORT}/index.html")
            shown.wait_for_selector(".link-graph text.node")
            drawn = shown.locator(".link-graph text.node").count()
            card = _pin(shown)
            browser.close()
    finally:
        server.stop()
    marks = AttributionGraph.load(path).marks
    expected = len(json.loads(path.read_text())["nodes"])
    return [
        (drawn == expected, f"its page draws {drawn} of {expected} nodes"),
        (not errors, f"without an error: {errors[:1]}"),
        ("France" in card or "Mary" in card, f"its card: {' '.join(card.split())[:150]} ..."),
        (len(marks.pins) == 1, f"what is pinned and saved there is pinned here: {marks.pins}"),
        (graph[marks.pins[0]].kind == "N" if marks.pins else False, "which is a neuron of the graph"),
    ]


def _pin(shown: Page) -> str:
    """Pin a neuron, by a click with the key for it, and save; what its card says."""
    neuron = "nodes => nodes.findIndex(node => node.__data__.feature_type === 'cross layer transcoder')"
    nodes = shown.locator(".link-graph text.node")
    nodes.nth(nodes.evaluate_all(neuron)).click(modifiers=["Control"], force=True)
    shown.get_by_role("button", name="Save").click()
    shown.wait_for_timeout(2000)
    return shown.locator(".feature-detail").inner_text()


def _answer(route: Route, scripts: dict[str, str], cards: Path) -> None:
    name = route.request.url.partition("?")[0].rpartition("/")[2]
    if "localhost" in route.request.url:
        route.continue_()
    elif name in scripts:
        route.fulfill(body=scripts[name], content_type="text/javascript")
    elif (cards / name).is_file():  # cards of features, which it looks for on the network
        route.fulfill(body=(cards / name).read_text(), content_type="application/json")
    else:
        route.fulfill(status=404)


def _scripts() -> dict[str, str]:
    folder = cache_root() / "peers" / "scripts"
    if not folder.exists():
        with replaced_folder(folder) as scratch:
            for package, _ in SCRIPTS.values():
                subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    found = {}
    for name, (package, member) in SCRIPTS.items():
        with tarfile.open(folder / f"{package.replace('@', '-')}.tgz") as archive:
            file = archive.extractfile(member)
            assert file is not None
            found[name] = file.read().decode()
    jetpack = "jetpack_2024-07-20.js"
    found[jetpack] = (
        found[jetpack].replace("factory(global.d3 = {}, global.d3", "factory(global.d3, global.d3") + LACKING
    )
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
