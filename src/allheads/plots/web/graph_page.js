// A graph alone: one sentence, its picture, and beside it what is said of the node that was chosen, and its card.

function graphView(root, data) {
  const card = new Card(data);
  const { graph } = data;
  const parts = graph.nodes.filter((node) => ["A", "X", "N"].includes(node.kind));
  const drawn = flow(graph, (node) => {
    if (!parts.includes(node)) return;
    setFragment(node.label);
    card.show(node.label, `Effect ${signed(node.effect)} at ${graph.columns[node.column]}.`);
  });
  const where = graph.columns[graph.nodes[0].column];
  root.append(
    el("h1", {}, `Why ${graph.target} is ${signed(graph.value)}`),
    el("p", {}, `After ${where}: ${parts.length} heads and neurons, and what flows between them, in logits. ${graph.held} `
      + `${Math.round(100 * graph.coverage)} % of what flows into these parts comes from parts that are shown.`),
    el("details", {}, el("summary", {}, `Rule ${graph.rule}`), el("p", { class: "soft" }, graph.means)),
    el("div", { class: "beside" }, drawn.element, el("aside", {}, drawn.text, card.element)));
  themed(() => card.draw());
  const opened = parts.find((node) => node.label === fragment());
  if (opened) card.show(opened.label);
}
