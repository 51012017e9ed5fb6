// An attribution graph: layers upward, positions across, edges as wide as what flows.

const SHAPES = {
  A: (size) => `M${-size} ${-size}H${size}V${size}H${-size}Z`,
  N: (size) => `M0 ${-size}A${size} ${size} 0 1 1 0 ${size}A${size} ${size} 0 1 1 0 ${-size}Z`,
  E: (size) => `M0 ${-size}L${size} ${size}H${-size}Z`,
  X: (size) => `M${-size} ${-size}H${-size / 3}L0 ${-size / 2}L${size / 3} ${-size}H${size}V${size}H${size / 3}L0 ${size / 2}L${-size / 3} ${size}H${-size}Z`,
  C: (size) => `M0 ${-size}L${size} 0L0 ${size}L${-size} 0Z`,
  T: (size) => `M0 ${-1.4 * size}L${size} ${size}L${-1.4 * size} ${-0.3 * size}H${1.4 * size}L${-size} ${size}Z`,
};
const [CELL, ROW, LEFT, TOP] = [18, 22, 48, 20];

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Where nodes stand: those of one column and layer side by side, so that none hides another. */
function layout(nodes, count) {
  const cells = new Map();
  for (const node of nodes) {
    const key = `${node.column} ${node.layer + (node.kind === "N" ? 0.5 : 0)}`;
    cells.set(key, [...(cells.get(key) ?? []), node]);
  }
  const widths = Array.from({ length: count + 1 }, () => 2);
  for (const [key, group] of cells) {
    const column = Number(key.split(" ")[0]) + 1;
    widths[column] = Math.max(widths[column], group.length + 1);
  }
  const [top, starts] = [Math.max(...nodes.map((node) => node.layer)), [0]];
  for (const width of widths) starts.push(starts.at(-1) + width);
  const places = new Map();
  for (const [key, group] of cells) {
    const [column, height] = key.split(" ").map(Number);
    const middle = (starts[column + 1] + starts[column + 2]) / 2;
    group.forEach((node, rank) => places.set(node.name, [
      LEFT + CELL * (middle + rank - (group.length - 1) / 2), TOP + ROW * (top - height)]));
  }
  return { places, starts, top };
}

/** The picture; `choose` gets a node when it is clicked or entered. */
function flow(graph, choose) {
  const names = graph.columns;
  const { places, starts, top } = layout(graph.nodes, names.length);
  const [width, height] = [LEFT + CELL * starts.at(-1) + 20, TOP + ROW * (top + 1) + 98];
  const most = Math.max(...graph.edges.map((edge) => Math.abs(edge[2])), 1e-9);
  const largest = Math.max(...graph.nodes.filter((node) => node.kind !== "T").map((node) => Math.abs(node.effect)), 1e-9);
  const sign = (value) => (value >= 0 ? "for" : "against");
  const edges = graph.edges.map(([source, target, weight, side]) => {
    const [[x0, y0], [x1, y1]] = [places.get(source), places.get(target)];
    const share = Math.abs(weight) / most;
    return svg("path", {
      d: `M${x0} ${y0}L${x1} ${y1}`, class: `edge ${sign(weight)}`, "stroke-width": Math.max(0.6, 6 * share),
      "stroke-opacity": (0.15 + 0.6 * share).toFixed(2), "stroke-dasharray": side === "V" ? "none" : "2 3",
    });
  });
  const nodes = graph.nodes.map((node, at) => {
    const size = 4 + 8 * Math.sqrt(Math.min(1, Math.abs(node.effect) / largest));
    const [x, y] = places.get(node.name);
    return svg("g", {
      class: `node ${sign(node.effect)}`, transform: `translate(${x} ${y})`, tabindex: at ? -1 : 0, role: "button",
      "data-name": node.name, "aria-label": describe(node),
    }, svg("path", { d: SHAPES[node.kind](node.kind === "T" ? 9 : size) }), svg("title", {}, describe(node)));
  });
  const axis = names.map((name, at) => svg("text", {
    transform: `translate(${LEFT + CELL * (starts[at + 1] + starts[at + 2]) / 2} ${height - 80}) rotate(40)`, class: "axis",
  }, name));
  for (let layer = 0; layer < top; layer += 5) {
    axis.push(svg("text", { x: 4, y: TOP + ROW * (top - layer) + 4, class: "axis" }, `L${layer}`));
  }
  const picture = svg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `Graph of ${graph.target}: ${graph.nodes.length} nodes, ${edges.length} of ${graph.count} edges`,
  }, ...axis, ...edges, ...nodes);
  const text = el("div", { class: "lists", "aria-live": "polite" });

  function describe(node) {
    const effect = `${node.effect >= 0 ? "+" : ""}${node.effect.toPrecision(3)}`;
    return node.kind === "T" ? `${graph.target}: ${graph.value.toPrecision(4)}` : `${node.label} at ${names[node.column] ?? "every position"}, effect ${effect}`;
  }

  function list(title, edges, end) {
    const items = edges.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 8).map((edge) => el("li", {},
      el("span", { class: "number" }, `${edge[2] >= 0 ? "+" : ""}${edge[2].toPrecision(3)} `),
      el("span", { class: "word" }, edge[end] + (edge[3] === "V" ? "" : ` into ${edge[3]}`))));
    return el("section", {}, el("h3", {}, title), el("ol", {}, ...items));
  }

  /** Only the edges of one node, or all of them. */
  function light(name) {
    picture.classList.toggle("lit", Boolean(name));
    graph.edges.forEach(([source, target], at) => edges[at].classList.toggle("on", source === name || target === name));
    const node = graph.nodes.find((each) => each.name === name);
    text.replaceChildren(...(node ? [
      el("section", {}, el("h3", {}, describe(node)), ...Object.entries(node.left).map(([side, [left, total]]) =>
        el("p", { class: "soft" }, `${side}: ${left.toPrecision(3)} of ${total.toPrecision(3)} comes from what is not in the graph.`))),
      list("flows in from", graph.edges.filter((edge) => edge[1] === name), 0),
      list("flows out to", graph.edges.filter((edge) => edge[0] === name), 1),
    ] : []));
  }

  const named = (event) => event.target.closest("[data-name]")?.dataset.name;
  // A click holds a node's edges in the light, until another is clicked, or the picture beside nodes.
  let held = null;
  picture.addEventListener("pointerover", (event) => light(named(event) ?? held));
  picture.addEventListener("pointerleave", () => light(held));
  picture.addEventListener("focusin", (event) => named(event) && light(named(event)));
  picture.addEventListener("click", (event) => {
    held = named(event) ?? null;
    light(held);
    if (held) choose(graph.nodes.find((node) => node.name === held));
  });
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(graph.nodes.find((node) => node.name === named(event)));
    }
  });
  roving(picture, () => nodes, () => {});
  const frame = el("div", { class: "flow" }, picture);
  // Where the picture is wider than the page, the target is to be seen first: parts stand above and before it.
  requestAnimationFrame(() => { frame.scrollLeft = places.get(graph.nodes[0].name)[0] - 0.8 * frame.clientWidth; });
  return { element: el("div", {}, frame, text), light };
}
