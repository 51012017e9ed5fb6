// Draw every picture of the page in its place.
for (const [id, [kind, data]] of Object.entries(JSON.parse(document.getElementById("data").textContent))) {
  const draw = { plot: () => plotView, attention: () => attentionView, graph: () => graphView, explore: () => exploreView };
  draw[kind]()(document.getElementById(id), data);
}
