// What every view stands on: elements without markup, colours of the page, and which theme the page has.

/** An element; children are elements or text, and text stays text. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Is the page that frames this one dark? Notebooks have themes of their own. */
function framed() {
  for (let node = window.frameElement?.parentElement; node; node = node.parentElement) {
    const [red, green, blue, alpha = 1] = getComputedStyle(node).backgroundColor.match(/[\d.]+/g).map(Number);
    if (alpha > 0.5) return red + green + blue < 384 ? "dark" : "light";
  }
  return null;
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");

function setTheme() {
  let theme = null;
  try { theme = framed(); } catch { /* The frame belongs to somebody else, who does not tell. */ }
  document.documentElement.dataset.theme = theme ?? (systemDark.matches ? "dark" : "light");
}

/** Set the theme now, and draw again whenever it changes: the system's, or that of the notebook around this page. */
function themed(draw) {
  const change = () => {
    const before = document.documentElement.dataset.theme;
    setTheme();
    if (document.documentElement.dataset.theme !== before) draw();
  };
  setTheme();
  systemDark.addEventListener("change", change);
  try {
    // A notebook's colours follow its attributes, after a transition.
    const later = () => [0, 300].forEach((wait) => setTimeout(change, wait));
    const outer = window.frameElement.ownerDocument;
    for (const element of [outer.documentElement, outer.body]) {
      new MutationObserver(later).observe(element, { attributes: true });
    }
  } catch { /* No frame, or somebody else's. */ }
}

/** A colour of the style sheet. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** 256 colours [red, green, blue], from the page's own to the one furthest from it. */
function palette() {
  const stops = colour("--scale").split(",").map((stop) => stop.trim().split(/\s+/).map(Number));
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((value, i) => Math.round(value + (place - low) * (stops[low + 1][i] - value)));
  });
}

/** Text that can be read on a colour. */
const legible = ([red, green, blue]) => (0.3 * red + 0.59 * green + 0.11 * blue > 140 ? "#000000" : "#ffffff");

/** A packed matrix (`packing.py`): `each` gives the weights that were kept, row by row; `levels` all of them, in 255ths. */
async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const [rows, columns] = new Uint32Array(buffer, 0, 2);
  const counts = new Uint8Array(buffer, 8, 2 * rows);
  const kept = (buffer.byteLength - 8 - 2 * rows) / 3;
  const [low, high, shown] = [0, 1, 2].map((plane) => new Uint8Array(buffer, 8 + 2 * rows + plane * kept, kept));
  const each = (visit) => {
    for (let row = 0, next = 0; row < rows; row++) {
      for (const end = next + counts[row] + 256 * counts[rows + row]; next < end; next++) {
        visit(row, low[next] + 256 * high[next], shown[next]);
      }
    }
  };
  const levels = () => {
    const all = new Uint8Array(rows * columns);
    each((row, column, level) => { all[row * columns + column] = level; });
    return all;
  };
  return { rows, columns, each, levels };
}

/** A dropdown of [value, text], the first entry all of them; `change` is called when one is chosen. */
function dropdown(name, options, change) {
  const select = el("select", { onchange: change }, el("option", { value: "" }, "all"),
    ...options.map(([value, text]) => el("option", { value }, text)));
  return { select, label: el("label", {}, `${name} `, select) };
}

/** Move along items with the arrow keys; only one of them is in the focus order. */
function roving(container, items, choose, width = () => 1) {
  const list = () => items().filter((item) => !item.hidden);
  container.addEventListener("keydown", (event) => {
    const all = list();
    const at = all.indexOf(document.activeElement);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: width(), ArrowUp: -width(), Home: -at, End: all.length - 1 - at };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const next = all[Math.max(0, Math.min(all.length - 1, at + steps[event.key]))];
    for (const item of all) item.tabIndex = item === next ? 0 : -1;
    next.focus();
    choose(next);
  });
}

/** The fragment of the address, where the page has one of its own. */
function fragment() {
  try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; /* A link of somebody else. */ }
}
function setFragment(name) {
  try { history.replaceState(null, "", `#${name}`); } catch { /* A frame without an address. */ }
}
