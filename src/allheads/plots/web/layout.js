// Where the nodes of a graph stand: a lane for each token, layers upward, all of it in the box that there is.

const [LEFT, RIGHT, TOP, BOTTOM] = [44, 16, 22, 84];

/** Nodes in units of lanes and layers, by name; those of one lane and layer stand side by side, the largest in the middle. */
function layout(nodes, tokens) {
  const cells = new Map();
  for (const node of nodes) {
    const key = `${node.column} ${node.layer + (node.kind === "N" ? 0.5 : 0)}`;
    cells.set(key, [...(cells.get(key) ?? []), node]);
  }
  const first = nodes.some((node) => node.column < 0) ? -1 : 0; // constants stand before all tokens
  // Most of what matters stands at few tokens: their lanes are wider, up to five times.
  const widths = Array.from({ length: tokens - first }, () => 1);
  for (const [key, group] of cells) {
    const lane = parseInt(key, 10) - first;
    widths[lane] = Math.max(widths[lane], Math.min(5, 0.5 + group.length / 2));
  }
  const starts = widths.reduce((all, width) => [...all, all.at(-1) + width], [0]);
  const lanes = widths.map((width, at) => starts[at] + width / 2);
  const top = Math.max(...nodes.map((node) => node.layer));
  const places = new Map();
  for (const [key, group] of cells) {
    const [column, height] = key.split(" ").map(Number);
    const step = (0.84 * widths[column - first]) / Math.max(group.length, 3);
    group.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).forEach((node, rank) => {
      const side = rank % 2 ? 1 : -1;
      places.set(node.name, [lanes[column - first] + side * Math.ceil(rank / 2) * step, top - height]);
    });
  }
  return { places, lanes: lanes.slice(-first), width: starts.at(-1), top };
}

/** From units to the pixels of a box. */
function scales(plan, width, height) {
  const [lane, layer] = [(width - LEFT - RIGHT) / plan.width, (height - TOP - BOTTOM) / (plan.top + 1)];
  return { lane, layer, x: (unit) => LEFT + unit * lane, y: (unit) => TOP + unit * layer };
}

/** Nodes and edges on the ways from one node to another, whichever of the two comes first. */
function between(edges, one, other) {
  const reach = (start, from, to) => {
    const found = new Set([start]);
    for (let size = 0; size < found.size;) {
      size = found.size;
      for (const edge of edges) if (found.has(edge[from])) found.add(edge[to]);
    }
    return found;
  };
  for (const [low, high] of [[one, other], [other, one]]) {
    const [up, down] = [reach(low, 0, 1), reach(high, 1, 0)];
    if (up.has(high)) return edges.filter(([source, target]) => up.has(source) && down.has(target));
  }
  return [];
}

/** A place for a name around its node where it hides as little as possible of what was named before. */
function besides([x, y], size, length, taken) {
  const [width, height] = [6.3 * length + 4, 14];
  const spots = [0, 12, 24].flatMap((away) => [[size + 3, -7 - away], [-size - 3 - width, -7 - away], [size + 3, -7 + away], [-size - 3 - width, -7 + away],
    [-width / 2, -size - 15 - away], [-width / 2, size + 3 + away]]).map(([dx, dy]) => [x + dx, y + dy]);
  const hidden = ([left, upper]) => taken.reduce((sum, [l, u, w, h]) =>
    sum + Math.max(0, Math.min(left + width, l + w) - Math.max(left, l)) * Math.max(0, Math.min(upper + height, u + h) - Math.max(upper, u)), 0);
  const best = spots.reduce((a, b) => (hidden(b) < hidden(a) - 1 ? b : a));
  taken.push([...best, width, height]);
  return [best[0] + 2, best[1] + 11];
}
