// A plotly figure, and the view of it that its dropdowns choose.

const plotly = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // leaves out "Share chart"
};

/** Bytes in base64, row by row, as rows of numbers in [0, 1]. */
function unpacked(text, width) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const rows = [];
  for (let start = 0; start < bytes.length; start += width) {
    rows.push(Array.from(bytes.subarray(start, start + width), (level) => level / 255));
  }
  return rows;
}

function plotView(root, { figure, views }) {
  const select = document.querySelector(`[data-plot="${root.id}"] select`);
  const draw = () => {
    figure.layout.font.color = colour("--ink");
    if (views.length) {
      const { title, z, ...rest } = views[Number(select.value)];
      Object.assign(figure.data[0], rest, { z: unpacked(z, figure.data[0].x.length) });
      figure.layout.title.text = title;
    }
    Plotly.react(root, figure.data, figure.layout, plotly);
  };
  select?.addEventListener("change", draw);
  themed(draw);
  draw();
}
