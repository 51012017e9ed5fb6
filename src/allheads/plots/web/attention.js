// The attention view: all heads at once, a row for each layer, and one of them large, or several beside each other.

/** Pixels of a thumbnail; more heads in a layer than this, and rows break. */
const [THUMBNAIL, BROADEST] = [30, 32];

/** What heads can be marked by: how much a query gives on average, as [query, key] pairs; induction is to what followed an earlier copy. */
const MARKS = {
  "previous token": (names) => names.slice(1).map((_, at) => [at + 1, at]),
  "first token": (names) => names.slice(1).map((_, at) => [at + 1, 0]),
  "own token": (names) => names.slice(1).map((_, at) => [at + 1, at + 1]),
  "induction": (names) =>
    names.flatMap((name, at) => names.slice(0, at).flatMap((other, before) => (other === name && before + 1 < at ? [[at, before + 1]] : []))),
};

function attentionView(root, data) {
  const { heads, names, error } = data;
  const panel = new PatternPanel(names, { error });
  const title = el("h1");
  const count = el("span", { class: "soft", "aria-live": "polite" });
  const rows = [...Map.groupBy(heads, (head) => `${head.stem} ${head.kind}`).values()];
  const broadest = Math.max(...rows.map((row) => row.length));
  const matrix = broadest <= BROADEST && heads.every((head) => head.kind !== "N");
  const buttons = heads.map((head, at) => el("button",
    { role: "option", "data-label": head.label, tabindex: -1, "aria-selected": "false", "aria-label": head.label, title: head.label, onclick: () => choose(at) },
    el("canvas", { width: 1, height: 1, "aria-hidden": true }), ...(matrix ? [] : [head.label])));
  const numbers = matrix ? [el("div", { class: "row", "aria-hidden": true }, el("span", { class: "stem" }),
    ...Array.from({ length: broadest }, (_, at) => el("span", { class: "number" }, at)))] : [];
  const lines = rows.map((row) => el("div", { class: "row" },
    el("span", { class: "stem", "aria-hidden": true }, row[0].stem + (row[0].kind === "X" ? " ×" : "")), ...row.map((head) => buttons[heads.indexOf(head)])));
  const grid = el("div", { class: `grid${matrix ? " matrix" : ""}`, role: "listbox", "aria-label": "Heads" }, ...numbers, ...lines);
  const kinds = { A: "look at their own text", X: "look across", N: "neurons" };
  const layer = dropdown("Layer", [...new Set(heads.map((head) => head.stem))].map((stem) => [stem, stem]), filter);
  const kind = dropdown("Kind", [...new Set(heads.map((head) => head.kind))].map((name) => [name, kinds[name]]), filter);
  for (const { select, label } of [layer, kind]) label.hidden = select.options.length < 3;
  const search = el("input", { type: "search", placeholder: "L3.A5", "aria-label": "Search by label", oninput: filter });
  const own = heads.filter((head) => head.kind === "A" && head.rows === head.columns);
  const marks = dropdown("Mark", Object.entries(MARKS).filter(([, pairs]) => own.some((head) => pairs(names[head.rows]).length)).map(([name]) => [name, name]), mark);
  marks.select.options[0].textContent = "nothing";
  marks.label.hidden = marks.select.options.length < 2;
  const marked = el("p", { class: "soft", "aria-live": "polite" });

  function filter() {
    const text = search.value.trim().toLowerCase();
    let shown = 0;
    heads.forEach((head, at) => {
      const fits = (!layer.select.value || head.stem === layer.select.value)
        && (!kind.select.value || head.kind === kind.select.value)
        && `${head.label}.`.toLowerCase().includes(text && /\d$/.test(text) ? `${text}.` : text);
      buttons[at].hidden = !fits;
      shown += fits;
    });
    for (const line of lines) line.hidden = [...line.querySelectorAll("button")].every((button) => button.hidden);
    count.textContent = shown === heads.length ? `${shown} heads` : `${shown} of ${heads.length} heads`;
    // What is large is always among what is shown.
    const first = buttons.findIndex((button) => !button.hidden);
    const chosen = buttons.find((button) => button.getAttribute("aria-selected") === "true");
    if (first >= 0 && chosen?.hidden) choose(first);
  }

  /** Frame every head as strongly as it does what is asked, and name those that do it most. */
  async function mark() {
    const pairs = MARKS[marks.select.value];
    const scored = [];
    for (const head of pairs ? own : []) {
      const cells = pairs(names[head.rows]);
      const { levels, columns } = await unpack(head.weights);
      const all = levels();
      scored.push([cells.reduce((sum, [query, key]) => sum + all[query * columns + key], 0) / (255 * Math.max(cells.length, 1)), head]);
    }
    const scores = new Map(scored.map(([score, head]) => [head, score]));
    heads.forEach((head, at) => buttons[at].style.setProperty("--mark", (scores.get(head) ?? 0).toFixed(3)));
    const best = scored.sort((a, b) => b[0] - a[0]).slice(0, 5);
    marked.replaceChildren(...(pairs ? ["Most: ", ...best.flatMap(([score, head]) =>
      [el("button", { onclick: () => choose(heads.indexOf(head)) }, `${head.label} ${score.toFixed(2)}`), " "])] : []));
  }

  function choose(at) {
    title.textContent = heads[at].label;
    buttons.forEach((button, other) => {
      button.setAttribute("aria-selected", other === at);
      button.tabIndex = other === at ? 0 : -1;
    });
    setFragment(heads[at].label);
    return panel.show(heads[at]);
  }

  // What is kept stays beside the head that is chosen, with the same tokens pinned.
  const kept = el("div", { class: "kept" });
  const others = [];
  function keep() {
    const other = new PatternPanel(names, { error });
    const drop = () => { others.splice(others.indexOf(other), 1); section.remove(); };
    const section = el("section", {}, el("h2", {}, `${panel.head.label} `, el("button", { onclick: drop, "aria-label": `Drop ${panel.head.label}` }, "×")), other.element);
    kept.prepend(section);
    other.pinned = panel.pinned;
    others.push(other);
    return other.show(panel.head);
  }

  // Thumbnails are painted when they come into sight: a long text has many, and each takes a moment.
  const seen = new IntersectionObserver((entries) => {
    const colours = palette();
    entries.filter((entry) => entry.isIntersecting).forEach(async ({ target }) => {
      seen.unobserve(target);
      const pattern = await unpack(heads[buttons.indexOf(target)].weights);
      paint(target.querySelector("canvas"), pattern, THUMBNAIL, colours);
    });
  });

  const opened = () => Math.max(0, heads.findIndex((head) => head.label === fragment()));
  const thumbnails = () => buttons.forEach((button) => seen.observe(button));
  roving(grid, () => buttons, (button) => choose(buttons.indexOf(button)), () => (matrix ? broadest
    : Math.max(1, Math.floor(grid.clientWidth / (buttons[0].offsetWidth + 4)))));
  addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== search) { event.preventDefault(); search.focus(); }
  });
  const link = () => {
    const button = buttons[opened()];
    // Not into view by itself: that would move the notebook around this frame.
    grid.scrollTop = button.offsetTop - grid.offsetTop - (grid.clientHeight - button.offsetHeight) / 2;
    return choose(opened());
  };
  addEventListener("hashchange", link);
  const tools = el("div", { class: "tools", hidden: heads.length < 2 }, layer.label, kind.label, marks.label, search, count);
  const large = el("div", {}, el("div", { class: "titled" }, title, heads.length > 1 ? el("button", { onclick: keep }, "Keep to compare") : ""), panel.element);
  root.append(tools, marked, heads.length < 2 ? large : el("div", { class: "columns" }, grid, el("div", { class: "panels" }, large, kept)));
  themed(() => { for (const each of [panel, ...others]) each.draw(); thumbnails(); });
  filter();
  link().then(thumbnails);
}
