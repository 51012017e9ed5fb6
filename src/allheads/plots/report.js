// Draws the page's plots, and shows the view that its dropdowns choose.
const plots = JSON.parse(document.getElementById("data").textContent);
const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // leaves out "Share chart"
};
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Bytes in base64, row by row, as rows of numbers in [0, 1]. */
function unpacked(text, width) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const rows = [];
  for (let start = 0; start < bytes.length; start += width) {
    rows.push(Array.from(bytes.subarray(start, start + width), (level) => level / 255));
  }
  return rows;
}

/** Which view the dropdowns of a plot choose: their values add up to its number. */
function chosen(name) {
  const selects = document.querySelectorAll(`[data-plot="${name}"] select`);
  return Array.from(selects).reduce((sum, select) => sum + Number(select.value), 0);
}

function draw(name) {
  const { figure, views } = plots[name];
  const layout = figure.layout;
  layout.font.color = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  if (views.length) {
    const { title, z, ...rest } = views[chosen(name)];
    Object.assign(figure.data[0], rest, { z: unpacked(z, figure.data[0].x.length) });
    layout.title.text = title;
  }
  Plotly.react(name, figure.data, layout, config);
}

for (const name of Object.keys(plots)) draw(name);
for (const choice of document.querySelectorAll("[data-plot]")) {
  choice.addEventListener("change", () => draw(choice.dataset.plot));
}
dark.addEventListener("change", () => Object.keys(plots).forEach(draw));
