// One head's pattern: painted, and read token by token.

/** Pixels for the names of tokens beside a matrix. */
const NAMES = 96;

/** Paint a pattern, one pixel a cell, or the largest of several where there are more cells than pixels. */
function paint(canvas, { rows, columns, each }, most, colours) {
  const step = Math.max(1, Math.ceil(Math.max(rows, columns) / most));
  const [width, height] = [columns, rows].map((count) => Math.ceil(count / step));
  const largest = new Uint8Array(width * height);
  each((row, column, level) => {
    const cell = Math.floor(row / step) * width + Math.floor(column / step);
    if (level > largest[cell]) largest[cell] = level;
  });
  const words = Uint32Array.from(colours, ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0);
  const image = new ImageData(width, height);
  new Uint32Array(image.data.buffer).set(Uint32Array.from(largest, (level) => words[level]));
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A row of tokens that can be walked through. */
function strip(names, label, { over, out, pin }) {
  const items = names.map((name, at) => el("span", { role: "option", "data-at": at, tabindex: at ? -1 : 0 }, name));
  const element = el("div", { class: "strip", role: "listbox", "aria-label": label }, ...items);
  const at = (event) => event.target.closest("[data-at]")?.dataset.at;
  element.addEventListener("pointerover", (event) => at(event) !== undefined && over(Number(at(event))));
  element.addEventListener("pointerleave", () => out());
  element.addEventListener("click", (event) => at(event) !== undefined && pin(Number(at(event))));
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(Number(at(event))); }
  });
  roving(element, () => items, (item) => over(Number(item.dataset.at)));
  return { element, items };
}

/** The large picture of a head: its matrix, its tokens, and what the token under the pointer looks at. */
class PatternPanel {
  constructor(names, { error }) {
    this.names = names;
    this.error = error;
    this.canvas = el("canvas", { role: "img", tabindex: 0 });
    this.caption = el("p", { class: "soft", "aria-live": "polite" });
    this.strips = el("div");
    this.lists = el("div", { class: "lists" });
    this.cross = ["across", "along"].map((way) => el("div", { class: `cross ${way}`, hidden: true }));
    this.masked = el("div", { class: "masked", title: "masked: a token sees none that come later", hidden: true });
    this.axes = { keys: el("div", { class: "keys", "aria-hidden": true }), queries: el("div", { class: "queries", "aria-hidden": true }) };
    const scale = el("p", { class: "scale soft" }, "0 ", el("span", { class: "ramp" }), " 1 weight");
    const frame = el("div", { class: "axes" }, el("span", { class: "corner soft" }, "query ↓ key →"), this.axes.keys, this.axes.queries,
      el("div", { class: "pattern" }, this.canvas, this.masked, ...this.cross));
    this.element = el("div", {}, frame, scale, this.caption, this.strips, this.lists);
    this.canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
      this.over(Math.floor(offsetY / this.size), Math.floor(offsetX / this.size));
    });
    this.canvas.addEventListener("pointerleave", () => this.out());
    this.element.addEventListener("keydown", ({ key }) => key === "Escape" && this.pin(null, null));
  }

  async show(head) {
    this.head = head;
    const pattern = await unpack(head.weights);
    if (this.head !== head) return; // Another one was chosen meanwhile.
    const levels = pattern.levels();
    this.pattern = { ...pattern, levels, level: (row, column) => levels[row * pattern.columns + column] };
    // A pinned token stays while one walks through heads of the same text.
    const [row, column] = this.pinned ?? [null, null];
    if (row >= pattern.rows || column >= pattern.columns) this.pinned = null;
    const room = Math.min(600, this.element.clientWidth - 4) - NAMES;
    this.size = Math.max(1, Math.min(28, Math.floor(room / Math.max(pattern.rows, pattern.columns))));
    this.strip();
    this.axis("keys", "columns");
    this.axis("queries", "rows");
    this.mask();
    this.draw();
  }

  /** Names along one side of the matrix: all of them where they fit, else every so many. */
  axis(side, of) {
    const names = this.names[this.head[of]];
    const every = Math.max(1, Math.ceil(11 / this.size));
    this.axes[side].style[side === "keys" ? "width" : "height"] = `${names.length * this.size}px`;
    this.axes[side].replaceChildren(...names.flatMap((name, at) => {
      if (at % every) return [];
      const label = el("span", { "data-place": at }, every > 1 ? `${at} ${name}` : name);
      label.style[side === "keys" ? "left" : "top"] = `${(at + 0.5) * this.size}px`;
      return [label];
    }));
  }

  /** Hatch what no token sees, as 0 is something else: the cells above the diagonal, where all of them are empty. */
  mask() {
    const { rows, columns, levels } = this.pattern;
    const empty = (row) => levels.subarray(row * columns + row + 1, (row + 1) * columns).every((level) => !level);
    const causal = this.same && rows > 1 && Array.from({ length: rows }, (_, row) => row).every(empty);
    this.masked.hidden = !causal;
    const steps = Array.from({ length: rows }, (_, row) => [[row + 1, row], [row + 1, row + 1]]).flat();
    this.masked.style.clipPath = `polygon(100% 0,${steps.map(([x, y]) => `${(100 * x) / columns}% ${(100 * y) / rows}%`).join(",")})`;
  }

  draw() {
    if (!this.pattern) return;
    this.colours = palette();
    paint(this.canvas, this.pattern, Infinity, this.colours);
    this.canvas.style.width = `${this.pattern.columns * this.size}px`;
    this.canvas.style.height = `${this.pattern.rows * this.size}px`;
    this.canvas.setAttribute("aria-label", this.summary());
    this.out();
  }

  /** One strip where a text looks at itself, two where it looks at something else. */
  strip() {
    const { head, names } = this;
    this.same = head.rows === head.columns;
    const handlers = (cell) => ({
      over: (at) => this.over(...cell(at)), pin: (at) => this.pin(...cell(at)), out: () => this.out(),
    });
    this.rowStrip = strip(names[head.rows], this.same ? "tokens" : "looks", handlers((at) => [at, null]));
    this.columnStrip = this.same ? this.rowStrip : strip(names[head.columns], "looked at", handlers((at) => [null, at]));
    this.items = [...new Set([...this.rowStrip.items, ...this.columnStrip.items])];
    this.strips.replaceChildren(
      el("h3", {}, this.same ? "Tokens: hover, or walk with the arrow keys" : "These look"), this.rowStrip.element,
      ...(this.same ? [] : [el("h3", {}, "at these"), this.columnStrip.element]),
    );
  }

  /** Whatever is pinned stays until Escape, until it is clicked again, or until something else is pinned. */
  over(row, column) {
    if (!this.pinned) this.mark(row, column);
  }

  out() {
    this.mark(...(this.pinned ?? [null, null]));
  }

  pin(row, column) {
    const again = this.pinned && this.pinned[0] === row && this.pinned[1] === column;
    this.pinned = again || (row === null && column === null) ? null : [row, column];
    this.out();
  }

  /** Show what a row looks at and what looks at a column; in one text, both of the same token. */
  mark(row, column) {
    if (!this.pattern || row >= this.pattern.rows || column >= this.pattern.columns) return;
    const { rows, columns, level } = this.pattern;
    const looked = this.same && column === null ? row : column;
    for (const [at, cross, side, size] of [[row, this.cross[0], "top", "height"], [column, this.cross[1], "left", "width"]]) {
      cross.hidden = at === null;
      cross.style[side] = `${at * this.size}px`;
      cross.style[size] = `${Math.max(this.size, 2)}px`;
    }
    for (const [side, at] of [["queries", row], ["keys", column]]) {
      for (const label of this.axes[side].children) label.classList.toggle("at", at !== null && label.dataset.place === String(at));
    }
    const marked = [row === null ? null : this.rowStrip.items[row], column === null ? null : this.columnStrip.items[column]];
    for (const item of this.items) {
      item.style.cssText = "";
      item.classList.toggle("at", marked.includes(item));
      item.classList.toggle("held", Boolean(this.pinned) && marked.includes(item));
      item.setAttribute("aria-selected", marked.includes(item));
    }
    this.lists.replaceChildren();
    if (row !== null) {
      this.columnStrip.items.forEach((item, at) => this.fill(item, level(row, at)));
      this.list(`${this.name("rows", row)} looks at`, columns, (at) => level(row, at), "columns");
    }
    if (looked !== null) {
      this.rowStrip.items.forEach((item, at) => this.underline(item, level(at, looked)));
      this.list(`${this.name("columns", looked)} is looked at by`, rows, (at) => level(at, looked), "rows");
    }
    const held = this.pinned ? "Pinned: click again or press Escape to let go. " : "";
    this.caption.textContent = held + (row !== null && column !== null
      ? `${this.name("rows", row)} looks at ${this.name("columns", column)}: ${(level(row, column) / 255).toFixed(3)}`
      : `Colour: where a token looks; underlined: what looks at it. Weights are shown to within ${this.error}.`);
  }

  fill(item, level) {
    if (!level) return;
    const shown = this.colours[level];
    item.style.backgroundColor = `rgb(${shown.join(" ")})`;
    item.style.color = legible(shown);
  }

  underline(item, level) {
    if (level) item.style.borderBottomColor = `rgb(${colour("--back")} / ${(0.15 + 0.85 * level / 255).toFixed(2)})`;
  }

  /** The largest weights as text, and what a row spreads over the others. */
  list(title, count, level, side) {
    const best = Array.from({ length: count }, (_, at) => at).filter(level).sort((a, b) => level(b) - level(a)).slice(0, 8);
    const items = best.map((at) => el("li", {},
      el("span", { class: "number" }, `${(level(at) / 255).toFixed(3)} `), el("span", { class: "word" }, this.name(side, at))));
    const rest = 1 - best.reduce((sum, at) => sum + level(at) / 255, 0);
    if (side === "columns" && rest > 0.01) items.push(el("li", { class: "rest" }, `${rest.toFixed(3)} in smaller weights`));
    this.lists.append(el("section", {}, el("h3", {}, title), el("ol", {}, ...items)));
  }

  name(side, at) {
    return `${at} ${this.names[this.head[side]][at]}`;
  }

  summary() {
    const { rows, columns, levels } = this.pattern;
    let best = 0;
    for (let cell = 1; cell < levels.length; cell++) if (levels[cell] > levels[best]) best = cell;
    const [row, column] = [Math.floor(best / columns), best % columns];
    return `Pattern of ${this.head.label}, ${rows} by ${columns}. Largest weight ${(levels[best] / 255).toFixed(2)}: `
      + `${this.name("rows", row)} looks at ${this.name("columns", column)}.`;
  }
}
