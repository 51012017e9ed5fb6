// The explorer: predictions along the text, what made the chosen one, a card for each part, and the graph.

function exploreView(root, data) {
  const { names, predictions, graph, rule } = data;
  const tokens = names[0];
  const card = new Card(data);
  const state = { at: data.opened, label: null };
  const known = new Set([...data.heads.map((head) => head.label.replace(/(\.N\d+)\.\d+$/, "$1")), ...Object.keys(data.cards)]);
  const stem = (label) => label.split(".")[0];

  // The text: every token with what the model says comes next.
  const items = tokens.map((token, at) => el("span",
    { role: "option", "data-at": at, tabindex: -1, onclick: () => explain(at) },
    el("span", { class: "token" }, token), el("span", { class: "next" }, predictions[at].offered[0][0])));
  const text = el("div", { class: "text", role: "listbox", "aria-label": "Tokens, each with the prediction after it" }, ...items);
  roving(text, () => items, (item) => explain(Number(item.dataset.at)));

  // What made the prediction: one list of heads and neurons.
  const heading = el("h2");
  const offered = el("p");
  const origin = el("p", { class: "soft" });
  const search = el("input", { type: "search", placeholder: "L10.N77", "aria-label": "Search by label", oninput: list });
  const layers = [...new Set(data.heads.map((head) => stem(head.label)))];
  const layer = dropdown("Layer", layers.map((name) => [name, name]), list);
  const kind = dropdown("Kind", [["A", "attention heads"], ["N", "neurons"]], list);
  const position = dropdown("Position",
    [["1+", "all but the first token"], ...tokens.map((token, at) => [String(at), `${at} ${token}`])], list);
  position.select.value = tokens.length > 1 ? "1+" : "";
  const count = el("span", { class: "soft", "aria-live": "polite" });
  const body = el("tbody");
  const table = el("table", {}, el("thead", {}, el("tr", {},
    ...["part", "at", "effect (logits)", "direct"].map((name) => el("th", { scope: "col" }, name)))), body);
  const drawn = flow(graph, (node) => "AN".includes(node.kind) && open(node.label));
  const elsewhere = el("p", { class: "soft" }, "This graph is of the prediction after ",
    el("button", { onclick: () => explain(graph.position) }, `${graph.position} ${tokens[graph.position]}`));

  function explain(at) {
    state.at = at;
    items.forEach((item, other) => {
      item.setAttribute("aria-selected", other === at);
      item.tabIndex = other === at ? 0 : -1;
    });
    const found = predictions[at];
    heading.textContent = `After ${at} ${tokens[at]}: why ${found.offered[0][0]} rather than ${found.versus}?`;
    offered.replaceChildren(...found.offered.flatMap(([token, share]) =>
      [el("span", { class: "word" }, token), el("span", { class: "soft" }, ` ${(100 * share).toFixed(1)} %  `)]));
    origin.textContent = found.parts
      ? `Its logit is ${found.value.toPrecision(4)} larger: the tokens' embeddings bring ${signed(sum(found.tokens))} of it over all paths, constants ${signed(found.constants)}. ${graph.held}`
      : "Only the last predictions of a long text are explained.";
    const most = Math.max(...(found.tokens ?? []).map(Math.abs), 1e-9);
    items.forEach((item, other) => {
      const value = found.tokens?.[other] ?? 0;
      const share = Math.round(70 * Math.abs(value) / most);
      item.style.backgroundColor = share ? `color-mix(in srgb, var(${value > 0 ? "--good" : "--bad"}) ${share}%, transparent)` : "";
    });
    list();
    if (state.label) open(state.label);
  }

  const sum = (values) => values.reduce((total, value) => total + value, 0);

  function list() {
    const found = predictions[state.at].parts ?? [];
    const text = search.value.trim().toLowerCase();
    const [stemOf, kindOf, positionOf] = [layer, kind, position].map(({ select }) => select.value);
    const fits = found.filter(([label, at]) => (!stemOf || stem(label) === stemOf) && (!kindOf || label.includes(`.${kindOf}`))
      && (!positionOf || (positionOf === "1+" ? at > 0 : at === Number(positionOf))) && label.toLowerCase().includes(text));
    const most = Math.max(...found.map((part) => Math.abs(part[2])), 1e-9);
const first = found.filter((part) => part[1] === 0);
    const folded = positionOf === "1+" && first.length && state.at ? ` ${first.length} stand at the first token, where heads rest; together ${signed(sum(first.map((part) => part[2])))}.` : "";
    count.textContent = `${fits.length} of the ${found.length} parts with the largest effects.${folded}`;
    body.replaceChildren(...fits.map(([label, at, effect, direct], rank) => el("tr",
      { tabindex: rank ? -1 : 0, "data-label": label, "aria-selected": label === state.label, onclick: () => open(label) },
      el("th", { scope: "row", class: "word" }, label), el("td", { class: "word" }, `${at} ${tokens[at]}`), bar(effect, most),
      el("td", { class: "number" }, direct ? direct.toFixed(3) : ""))));
  }

  function bar(effect, most) {
    const cell = el("td", { class: `number bar ${effect >= 0 ? "for" : "against"}` }, `${effect >= 0 ? "+" : ""}${effect.toFixed(3)}`);
    cell.style.setProperty("--share", `${(100 * Math.abs(effect)) / most}%`);
    return cell;
  }

  function open(name) {
    const label = name.toUpperCase();
    if (!exists(label)) {
      if (name) count.textContent = `No head or neuron ${name} here: labels are like L3.A5 and L10.N77.`;
      return;
    }
    state.label = label;
    setFragment(label);
    for (const row of body.children) row.setAttribute("aria-selected", row.dataset.label === label);
    const here = (predictions[state.at].parts ?? []).filter((part) => part[0] === label);
    card.show(label, here.map(([, at, effect]) => `Effect ${effect.toPrecision(3)} at ${at} ${tokens[at]}.`).join(" "));
  }

  /** Any head, and any neuron that has a gate here. */
  function exists(label) {
    const neuron = /^L(\d+)\.N(\d+)$/.exec(label);
    return known.has(label) || Boolean(neuron && Number(neuron[1]) < data.gates.length && Number(neuron[2]) < data.d_mlp[Number(neuron[1])]);
  }

  roving(body, () => [...body.children], () => {});
  body.addEventListener("keydown", ({ key, target }) => key === "Enter" && open(target.dataset.label));
  search.addEventListener("keydown", ({ key }) => key === "Enter" && open(search.value.trim()));
  addEventListener("keydown", (event) => {
    if (event.target.matches("input, select")) return;
    const steps = { "[": -1, "]": 1 };
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    if (event.key in steps) explain(Math.max(0, Math.min(tokens.length - 1, state.at + steps[event.key])));
  });
  addEventListener("hashchange", () => open(fragment()));
  root.append(
    el("h1", {}, document.title),
    el("p", {}, "Below each token stands what the model says comes next. Click one to see which tokens, heads and neurons made it so."),
    el("details", {}, el("summary", {}, `Rule ${rule.name}, colours and keys`), el("p", { class: "soft" }, `Asked: ${rule.answers} Not seen: ${rule.misses} `
      + "Colour: what each token's embedding brings, blue for the prediction and orange against it. "
      + "Keys: / searches, [ and ] go through the predictions, arrows walk, Enter opens.")), text,
    el("div", { class: "columns wide" },
      el("section", {}, heading, offered, origin,
        el("div", { class: "tools" }, layer.label, kind.label, position.label, search, count), el("div", { class: "ranked" }, table)),
      card.element),
    el("section", {}, el("h2", {}, "What flows where"), elsewhere, el("div", { class: "beside" }, drawn.element, el("aside", {}, drawn.text))));
  themed(() => card.draw());
  explain(state.at);
  open(exists(fragment()) ? fragment() : predictions[state.at].parts[0][0]);
}
