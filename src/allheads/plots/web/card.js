// The card of a head or a neuron: what opens it, its pattern, what it writes, how exact it is.

const SIDES = {
  opens: "Tokens that open it", closes: "Tokens that close it", raises: "Tokens that raise its value",
  lowers: "Tokens that lower its value", promotes: "It promotes", suppresses: "It suppresses",
};

class Card {
  constructor(data) {
    this.data = data;
    this.title = el("h2");
    this.facts = el("p", { class: "soft" });
    this.parts = el("select", { "aria-label": "Head of the neuron", onchange: () => this.panel.show(this.heads[this.parts.selectedIndex]) });
    this.gate = el("div");
    this.sides = el("div", { class: "lists" });
    this.panel = new PatternPanel(data.names, data);
    this.pattern = el("div", {}, el("h3", {}, "Pattern "), this.parts, this.panel.element);
    this.element = el("section", { class: "card", hidden: true, "aria-label": "Card" },
      this.title, this.facts, this.gate, this.sides, this.pattern);
  }

  /** All that is known of a part; `context` stands beneath its name. */
  async show(label, context = "") {
    const { cards, heads } = this.data;
    const card = cards[label];
    this.element.hidden = false;
    this.title.textContent = label;
    this.heads = heads.filter((head) => head.label === label || head.label.startsWith(`${label}.`));
    this.facts.textContent = [context, card ? this.summary(card, label) : this.missing(label)].filter(Boolean).join(" ");
    this.sides.replaceChildren(...Object.entries(SIDES).filter(([side]) => card?.[side]?.length).map(([side, title]) =>
      el("section", {}, el("h3", {}, side === "promotes" && "at" in card ? `At ${card.at} it promotes` : title),
        el("ol", {}, ...card[side].map(([token, value]) =>
          el("li", {}, el("span", { class: "number" }, `${value} `), el("span", { class: "word" }, token)))))));
    this.parts.replaceChildren(...this.heads.map((head) => el("option", {}, head.label)));
    // The gate above and the pattern below are of one head.
    const part = Math.max(0, Math.min(this.heads.length - 1, this.gatePart(label)));
    this.parts.selectedIndex = part;
    this.parts.hidden = this.heads.length < 2;
    this.pattern.hidden = this.heads.length === 0;
    this.label = label;
    const head = this.heads[part];
    await this.gates(label);
    // Another part may have been chosen meanwhile.
    if (head && this.label === label) await this.panel.show(head);
  }

  /** Again, in other colours. */
  draw() {
    this.panel.draw();
    if (this.label) this.gates(this.label);
  }

  /** Which head of a neuron has the gate that is shown. */
  gatePart(label) {
    const neuron = /^L(\d+)\.N\d+$/.exec(label);
    return (neuron && this.data.gate_parts?.[Number(neuron[1])]) || 0;
  }

  summary(card, label) {
    const size = card.size === undefined ? "" : `; writes ${card.size.toPrecision(3)} at its most important token`;
    const unread = (card.unread ?? []).map((reason) => ` Not read: ${reason}`).join("");
    if (!label.includes(".N")) return `The model's own head${size}. Error bound 0.${unread}`;
    return `A neuron as ${this.heads.length === 1 ? "one head" : `${this.heads.length} heads`}: writes at most ${card.size.toPrecision(3)} in this text, `
      + `certified to within ${card.bound === 0 ? "0" : card.bound.toExponential(1)}.${unread}`;
  }

  missing(label) {
    return label.includes(".N") ? `Not among the parts that matter most here, or edited. ah.weights.circuit(twin, "${label}") reads weights that were not.` : "";
  }

  /** How far a neuron's gate is open at each token. */
  async gates(label) {
    const neuron = /^L(\d+)\.N(\d+)$/.exec(label);
    const packed = neuron && this.data.gates?.[Number(neuron[1])];
    this.gate.replaceChildren();
    if (!packed) return;
    const [levels, names] = [(await unpack(packed)).levels(), this.data.names[0]];
    const [colours, start] = [palette(), Number(neuron[2]) * names.length];
    this.gate.append(el("h3", {}, `The gate of ${label}.${this.gatePart(label)}: how far it attends to each token itself`), el("p", { class: "strip" },
      ...names.map((name, at) => {
        const level = levels[start + at];
        const item = el("span", { title: `${at} ${name}: ${(level / 255).toFixed(2)}` }, name);
        item.style.backgroundColor = `rgb(${colours[level].join(" ")})`;
        item.style.color = legible(colours[level]);
        return item;
      })));
  }
}
