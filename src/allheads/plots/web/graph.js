// A graph alone: its picture, and the card of the node that was chosen.

function graphView(root, data) {
  const card = new Card(data);
  const { graph } = data;
  const drawn = flow(graph, (node) => {
    if (!["A", "X", "N"].includes(node.kind)) return;
    setFragment(node.label);
    card.element.scrollIntoView({ block: "nearest" });
    card.show(node.label, `Effect ${node.effect.toPrecision(3)} at ${graph.columns[node.column]}.`);
  });
  root.append(
    el("h1", {}, `${graph.target}: ${graph.value.toPrecision(4)}`),
    el("p", { class: "soft" }, `Rule ${graph.rule}; ${graph.edges.length} of ${graph.count} edges. Squares are heads, circles neurons, `
      + "triangles tokens; blue is for it, orange against it; dotted edges lead into queries and keys."),
    drawn.element, card.element);
  themed(() => card.draw());
  const opened = graph.nodes.find((node) => node.label === fragment());
  if (opened) card.show(opened.label);
}
