// An attribution graph: layers upward, tokens across, edges as wide as what flows. It fits its box; zoom and drag to see more.

const SHAPES = {
  A: (size) => `M${-size} ${-size}H${size}V${size}H${-size}Z`,
  N: (size) => `M0 ${-size}A${size} ${size} 0 1 1 0 ${size}A${size} ${size} 0 1 1 0 ${-size}Z`,
  E: (size) => `M0 ${-size}L${size} ${size}H${-size}Z`,
  X: (size) => `M${-size} ${-size}H${-size / 3}L0 ${-size / 2}L${size / 3} ${-size}H${size}V${size}H${size / 3}L0 ${size / 2}L${-size / 3} ${size}H${-size}Z`,
  F: (size) => `M${-size} 0L${-size / 2} ${-size}H${size / 2}L${size} 0L${size / 2} ${size}H${-size / 2}Z`,
  R: (size) => `M${-size} ${-size}L0 ${-size / 3}L${size} ${-size}L${size / 3} 0L${size} ${size}L0 ${size / 3}L${-size} ${size}L${-size / 3} 0Z`,
  C: (size) => `M0 ${-size}L${size} 0L0 ${size}L${-size} 0Z`,
  T: (size) => `M0 ${-1.4 * size}L${size} ${size}L${-1.4 * size} ${-0.3 * size}H${1.4 * size}L${-size} ${size}Z`,
};
const KINDS = { T: "target", A: "head", X: "head that looks across", N: "neuron", F: "latent", R: "not reconstructed", E: "token", C: "constants" };
/** Names in the picture, beside the target's; the longest stub, in pixels. */
const [NAMED, STUB] = [15, 22];

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const signed = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toPrecision(3)}`;
const sign = (value) => (value >= 0 ? "for" : "against");

/** The picture and what is said of the nodes that are chosen; `choose` gets a node when it is clicked or entered. */
function flow(graph, choose) {
  const known = new Map(graph.nodes.map((node) => [node.name, node]));
  const plan = layout(graph.nodes, graph.columns.length);
  const largest = Math.max(...graph.nodes.filter((node) => node.kind !== "T").map((node) => Math.abs(node.effect)), 1e-9);
  const most = Math.max(...graph.edges.map((edge) => Math.abs(edge[2])), 1e-9);
  const size = (node) => (node.kind === "T" ? 9 : 4 + 8 * Math.sqrt(Math.min(1, Math.abs(node.effect) / largest)));
  const ranked = [...graph.nodes].sort((a, b) => (b.kind === "T") - (a.kind === "T") || Math.abs(b.effect) - Math.abs(a.effect));

  const edges = graph.edges.map(([, , weight, side]) => svg("path", {
    class: `edge ${sign(weight)}`, "stroke-width": Math.max(0.8, (6 * Math.abs(weight)) / most),
    "stroke-opacity": (0.3 + (0.5 * Math.abs(weight)) / most).toFixed(2), "stroke-dasharray": side === "V" ? "none" : "2 3",
  }));
  // The smallest are drawn last, above what would hide them.
  const nodes = graph.nodes.map((node, at) => svg("g", {
    class: `node ${sign(node.effect)}`, tabindex: at ? -1 : 0, role: "button", "data-name": node.name, "aria-label": describe(node),
  }, svg("path", { class: "stub", d: `M0 ${size(node)}v${STUB * missing(node)}` }),
    svg("path", { class: "shape", d: SHAPES[node.kind](size(node)) }), svg("title", {}, describe(node))));
  const [axis, names] = [svg("g", { class: "axis" }), svg("g", { class: "names", "aria-hidden": true })];
  const picture = svg("svg", { role: "group", tabindex: -1, "aria-label": `Graph of ${graph.target}: ${graph.nodes.length} nodes` },
    axis, svg("g", {}, ...edges), svg("g", {}, ...ranked.map((node) => nodes[graph.nodes.indexOf(node)])), names);
  const text = el("div", { class: "lists told", "aria-live": "polite" });

  /** The share of what a node reads through values that comes from what is not in the graph. */
  function missing(node) {
    const [left, total] = node.left.V ?? [0, 1];
    return Math.min(1, Math.abs(left) / Math.max(Math.abs(total), Math.abs(left), 1e-12));
  }

  function describe(node) {
    return node.kind === "T" ? `${graph.target}: ${graph.value.toPrecision(4)} logits`
      : `${node.label} at ${graph.columns[node.column] ?? "every position"}, effect ${signed(node.effect)}`;
  }

  let view = d3.zoomIdentity;
  let box = [0, 0];

  /** Put everything where it belongs in the box, as far as it was zoomed: shapes keep their size. */
  function place() {
    const [width, height] = box;
    const to = scales(plan, width, height);
    const at = (name) => { const [x, y] = plan.places.get(name); return [view.applyX(to.x(x)), view.applyY(to.y(y))]; };
    graph.edges.forEach(([source, target], index) => {
      const [[x0, y0], [x1, y1]] = [at(source), at(target)];
      edges[index].setAttribute("d", `M${x0} ${y0}L${x1} ${y1}`);
    });
    graph.nodes.forEach((node, index) => nodes[index].setAttribute("transform", `translate(${at(node.name).join(" ")})`));
    const inside = ([x, y]) => x > LEFT - 12 && x < width - 4 && y > 4 && y < height - BOTTOM + 16;
    const shown = ranked.filter((node) => node.kind !== "E" && node.kind !== "C" && inside(at(node.name))).slice(0, NAMED + 1);
    const taken = shown.map((node) => { const [x, y] = at(node.name); return [x - size(node), y - size(node), 2 * size(node), 2 * size(node)]; });
    names.replaceChildren(...shown.map((node) => {
      const name = node.kind === "T" ? graph.target : node.label;
      const [x, y] = besides(at(node.name), size(node), name.length, taken);
      return svg("text", { x: Math.max(2, Math.min(x, width - 6.3 * name.length - 4)), y }, name);
    }));
    axis.replaceChildren(...lanes(to, width, height), ...layers(to, height));
  }

  function lanes(to, width, height) {
    let free = -Infinity; // where the next name has room
    return graph.columns.flatMap((name, at) => {
      const x = view.applyX(to.x(plan.lanes[at]));
      if (x < LEFT - 4 || x > width) return [];
      const line = svg("line", { x1: x, x2: x, y1: 0, y2: height - BOTTOM + 14 });
      if (x < free) return [line];
      free = x + 12;
      const short = name.length > 13 ? `${name.slice(0, 12)}…` : name;
      return [line, svg("g", {}, svg("title", {}, name), svg("text", { transform: `translate(${x - 3} ${height - BOTTOM + 26}) rotate(45)` }, short))];
    });
  }

  function layers(to, height) {
    const every = Math.max(1, Math.ceil(14 / (to.layer * view.k)));
    const found = [];
    for (let layer = 0; layer < plan.top; layer += every) {
      const y = view.applyY(to.y(plan.top - layer));
      if (y > 4 && y < height - BOTTOM + 14) found.push(svg("text", { x: 4, y: y + 4 }, `L${layer}`));
    }
    return found;
  }

  function list(title, found, end) {
    const items = found.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 8).map((edge) => el("li", {},
      el("span", { class: "number" }, `${signed(edge[2])} `),
      el("span", { class: "word" }, (end === null ? `${edge[0]} → ${edge[1]}` : edge[end]) + (edge[3] === "V" ? "" : ` into ${edge[3]}`))));
    return el("section", {}, el("h3", {}, title), items.length ? el("ol", {}, ...items) : el("p", { class: "soft" }, "nothing that is in the graph"));
  }

  function told(name) {
    const node = known.get(name);
    const shares = Object.entries(node.left).map(([side, [left, total]]) => el("p", {},
      `${side === "V" ? "Through values" : `Into its ${side === "Q" ? "query" : "key"}`}: ${signed(total)}, of which ${signed(left)} comes from parts that are not in the graph.`));
    const marks = [...(node.note ? [`Note: ${node.note}`] : []), ...graph.groups.filter(([, members]) => members.includes(name)).map(([group]) => `In the group ${group}.`)];
    return [el("section", { class: "whole" }, el("h3", {}, describe(node)), ...marks.map((mark) => el("p", {}, mark)), ...shares),
      list("Flows in from", graph.edges.filter((edge) => edge[1] === name), 0),
      list("Flows out to", graph.edges.filter((edge) => edge[0] === name), 1)];
  }

  function largestParts() {
    const items = ranked.filter((node) => !["T", "E", "C"].includes(node.kind)).slice(0, NAMED).map((node) => el("li", {},
      el("span", { class: "number" }, `${signed(node.effect)} `), el("span", { class: "word" }, `${node.label} at ${graph.columns[node.column]}`)));
    return [el("section", {}, el("h3", {}, "The largest parts. Click one in the picture; a second shows the ways between them"), el("ol", {}, ...items))];
  }

  // A click pins a node: its edges stay. A second pin shows the ways between the two; a third begins anew.
  let pins = graph.pins.slice(0, 2);

  /** The edges of the pinned nodes, or of the one under the pointer; without any, the largest. */
  function light(name = null) {
    const [one, two] = name && !pins.includes(name) ? [name] : pins;
    const ways = two ? new Set(between(graph.edges, one, two)) : null;
    picture.classList.toggle("lit", Boolean(one));
    graph.edges.forEach((edge, at) => {
      const on = ways ? ways.has(edge) : edge[0] === one || edge[1] === one;
      edges[at].classList.toggle("on", on);
      edges[at].style.display = on || at < slider.value ? "" : "none";
    });
    graph.nodes.forEach((node, at) => nodes[at].classList.toggle("pinned", pins.includes(node.name)));
    text.replaceChildren(...(ways ? [list(`${ways.size} edges on the ways between ${one} and ${two}`, [...ways], null)] : one ? told(one) : largestParts()));
  }

  function pin(name) {
    if (name === null) pins = [];
    else if (pins.includes(name)) pins = pins.filter((other) => other !== name);
    else pins = pins.length === 1 ? [...pins, name] : [name];
    light();
    if (name !== null) choose(known.get(name));
  }

  const named = (event) => event.target.closest("[data-name]")?.dataset.name ?? null;
  picture.addEventListener("pointerover", (event) => light(named(event)));
  picture.addEventListener("pointerleave", () => light());
  picture.addEventListener("focusin", (event) => named(event) && light(named(event)));
  picture.addEventListener("click", (event) => pin(named(event)));
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pin(null);
    if (named(event) && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); pin(named(event)); }
  });
  roving(picture, () => nodes, () => {});

  const zoom = d3.zoom().scaleExtent([1, 40]).on("zoom", ({ transform }) => { view = transform; place(); })
    // The wheel scrolls the page, with Ctrl it zooms; one finger scrolls until there is something to drag.
    .filter((event) => !event.button && (event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.touches || event.touches.length > 1 || view.k > 1));
  const by = (factor) => d3.select(picture).call(zoom.scaleBy, factor);
  d3.select(picture).call(zoom).on("dblclick.zoom", null);

  const share = el("span", { class: "soft", "aria-live": "polite" });
  const slider = el("input", { type: "range", min: 0, max: graph.edges.length, value: Math.min(graph.shown, graph.edges.length), "aria-label": "Edges that are drawn", oninput: draw });
  function draw() {
    const drawn = graph.edges.slice(0, slider.value).reduce((sum, edge) => sum + Math.abs(edge[2]), 0);
    share.textContent = `${slider.value} of ${graph.count} edges, ${Math.round((100 * drawn) / Math.max(graph.flow, 1e-12))} % of what flows between nodes`;
    light();
  }
  const search = el("input", { type: "search", placeholder: "L3.A5", "aria-label": "Find a node", onkeydown: ({ key }) => key === "Enter" && find() });
  function find() {
    const asked = search.value.trim().toLowerCase();
    const found = ranked.filter((node) => node.name.toLowerCase() === asked || node.label.toLowerCase() === asked);
    if (!found.length) { share.textContent = `${search.value} is not in this graph: a larger budget keeps more parts.`; return; }
    pins = [];
    pin(found[0].name);
  }
  const tools = el("div", { class: "tools" }, el("label", {}, "Edges ", slider), share, search,
    el("button", { onclick: () => by(1.6), "aria-label": "Zoom in" }, "+"), el("button", { onclick: () => by(1 / 1.6), "aria-label": "Zoom out" }, "−"),
    el("button", { onclick: () => d3.select(picture).call(zoom.transform, d3.zoomIdentity) }, "Fit"));

  const frame = el("div", { class: "flow" }, picture);
  new ResizeObserver(() => {
    box = [frame.clientWidth, Math.max(320, Math.min(640, 0.62 * innerHeight))];
    if (!box[0]) return;
    for (const [name, value] of [["width", box[0]], ["height", box[1]], ["viewBox", `0 0 ${box.join(" ")}`]]) picture.setAttribute(name, value);
    zoom.extent([[0, 0], box]).translateExtent([[0, 0], box]);
    place();
  }).observe(frame);
  draw();
  return { element: el("div", {}, tools, frame, legend(graph)), text };
}

/** What shapes, colours and lines mean; only what this graph has. */
function legend(graph) {
  const mark = (name, ...drawn) => el("span", {}, svg("svg", { width: 22, height: 16, viewBox: "-11 -8 22 16", "aria-hidden": true }, ...drawn), ` ${name}`);
  const kinds = Object.keys(KINDS).filter((kind) => graph.nodes.some((node) => node.kind === kind));
  const line = (attributes) => svg("path", { d: "M-10 0H10", "stroke-width": 2.5, ...attributes });
  return el("p", { class: "legend soft" }, ...kinds.map((kind) => mark(KINDS[kind], svg("path", { class: "shape", d: SHAPES[kind](kind === "T" ? 5 : 6) }))),
    mark("for the target", line({ class: "edge for" })), mark("against it", line({ class: "edge against" })),
    ...(graph.edges.some((edge) => edge[3] !== "V") ? [mark("into queries and keys", line({ class: "edge for", "stroke-dasharray": "2 3" }))] : []),
    mark("share of its inflow that is not in the graph", svg("path", { class: "stub", d: "M0 -7v14" })));
}
