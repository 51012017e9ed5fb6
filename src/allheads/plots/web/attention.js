// The attention view: a grid of heads to choose from, and one of them large.

const THUMBNAIL = 46;

function attentionView(root, data) {
  const { heads, names, error } = data;
  const panel = new PatternPanel(names, { error });
  const title = el("h1");
  const count = el("span", { class: "soft", "aria-live": "polite" });
  const buttons = heads.map((head, at) => el("button",
    { role: "option", "data-label": head.label, tabindex: -1, "aria-selected": "false", title: head.label, onclick: () => choose(at) },
    el("canvas", { width: 1, height: 1, "aria-hidden": true }), head.label));
  const grid = el("div", { class: "grid", role: "listbox", "aria-label": "Heads" }, ...buttons);
  const kinds = { A: "look at their own text", X: "look across", N: "neurons" };
  const layer = dropdown("Layer", [...new Set(heads.map((head) => head.stem))].map((stem) => [stem, stem]), filter);
  const kind = dropdown("Kind", [...new Set(heads.map((head) => head.kind))].map((name) => [name, kinds[name]]), filter);
  for (const { select, label } of [layer, kind]) label.hidden = select.options.length < 3;
  const search = el("input", { type: "search", placeholder: "L3.A5", "aria-label": "Search by label", oninput: filter });

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
    count.textContent = shown === heads.length ? `${shown} heads` : `${shown} of ${heads.length} heads`;
    // What is large is always among what is shown.
    const first = buttons.findIndex((button) => !button.hidden);
    const chosen = buttons.find((button) => button.getAttribute("aria-selected") === "true");
    if (first >= 0 && chosen?.hidden) choose(first);
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
  roving(grid, () => buttons, (button) => choose(buttons.indexOf(button)),
    () => Math.max(1, Math.floor(grid.clientWidth / (buttons[0].offsetWidth + 4))));
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
  const tools = el("div", { class: "tools", hidden: heads.length < 2 }, layer.label, kind.label, search, count);
  root.append(tools, heads.length < 2 ? el("div", {}, title, panel.element)
    : el("div", { class: "columns" }, grid, el("div", {}, title, panel.element)));
  themed(() => { panel.draw(); thumbnails(); });
  filter();
  link().then(thumbnails);
}
