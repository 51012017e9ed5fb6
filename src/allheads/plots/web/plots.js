// A plotly figure, and the view of it that its dropdowns choose.

const plotly = {
  responsive: true,
  displaylogo: false,
  typesetMath: false, // a token with two dollars is no formula
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // leaves out "Share chart"
};

/** On a phone a title is small, in lines of whole words, and begins at the edge, and a legend stands below. */
function narrow(layout, width) {
  const lines = [""];
  for (const word of layout.title.text.replaceAll("<br>", " ").split(" ")) {
    if (6.2 * (lines.at(-1).length + word.length) > width) lines.push("");
    lines.push([lines.pop(), word].filter(Boolean).join(" "));
  }
  Object.assign(layout.title, { xref: "container", x: 0.02, font: { size: 12 }, text: lines.join("<br>") });
  layout.legend = { orientation: "h", x: 0, y: -0.25 };
}

function plotView(root, { figure, views }) {
  const select = document.querySelector(`[data-plot="${root.id}"] select`);
  const draw = async () => {
    figure.layout.font.color = colour("--ink");
    if (views.length) {
      const view = views[Number(select.value)];
      const { title, z, ...rest } = view;
      const { rows, columns, levels } = await unpack(z);
      if (view !== views[Number(select.value)]) return; // Another one was chosen meanwhile.
      const weights = Array.from(levels(), (level) => level / 255);
      Object.assign(figure.data[0], rest, { z: Array.from({ length: rows }, (_, row) => weights.slice(row * columns, (row + 1) * columns)) });
      figure.layout.title.text = title;
    }
    if (root.clientWidth < 640) narrow(figure.layout, root.clientWidth);
    Plotly.react(root, figure.data, figure.layout, plotly);
  };
  select?.addEventListener("change", draw);
  themed(draw);
  draw();
}
