// Where each group of the picture stands. Pure: groups in, places out.
//
// Wide: a column for each tier, parents beside their children. Narrow: one group below the other, indented. A folded group keeps its place and shows all that is below it as small marks.

import { severity, worst } from "./states.js";
import { nameOf, parentOf } from "./format.js";

export const few = 24; // groups up to which each gets a whole card

// forest makes nodes of groups; each: {path, state, sites: [{site, state}], …}. A group without its parent among them is a top.
export function forest(groups) {
  const nodes = new Map();
  for (const g of groups) nodes.set(g.path, { ...g, name: nameOf(g.path), children: [], parent: undefined });
  const tops = [];
  for (const n of nodes.values()) {
    let up = parentOf(n.path);
    while (up && !nodes.has(up)) up = parentOf(up);
    n.parent = nodes.get(up);
    if (n.parent) n.parent.children.push(n);
    else tops.push(n);
  }
  const sum = (n, depth) => {
    n.depth = depth;
    n.below = [];
    n.count = 0;
    for (const c of n.children) {
      sum(c, depth + 1);
      n.count += 1 + c.count;
      n.below.push(...c.sites, ...c.below);
    }
    n.worstBelow = n.below.length > 0 ? worst(n.below.map((x) => x.state)) : undefined;
    n.worst = n.worstBelow && (severity[n.worstBelow] ?? 5) > (severity[n.state] ?? 5) ? n.worstBelow : n.state;
    n.below.sort((a, b) => (severity[b.state] ?? 5) - (severity[a.state] ?? 5));
  };
  for (const n of tops) sum(n, 0);
  return { nodes, tops };
}

// place gives each shown node x, y, w, h and, where it is folded, the place of its marks. folded says of a path whether it is.
export function place(tops, folded, width) {
  const shown = [];
  const open = (n) => n.children.length > 0 && !folded(n);
  const walk = (n) => { shown.push(n); n.open = open(n); if (n.open) n.children.forEach(walk); };
  tops.forEach(walk);
  const dense = shown.length > few;
  return width < 720 ? narrow(shown, width, dense) : wide(tops, shown, dense);
}

const pitch = 18; // of marks

function wide(tops, shown, dense) {
  const w = dense ? 268 : 248, h = dense ? 34 : 76, gap = dense ? 6 : 16, column = w + (dense ? 44 : 52), perLine = 30;
  let y = 2, right = 0;
  const put = (n) => {
    n.x = 2 + n.depth * column;
    n.w = w;
    n.h = h;
    right = Math.max(right, n.x + w);
    if (n.open) {
      for (const c of n.children) put(c);
      const first = n.children[0], last = n.children[n.children.length - 1];
      n.y = n.children.length > 6 || dense ? first.y : (first.y + last.y) / 2;
      return;
    }
    n.y = y;
    let tall = h;
    if (n.children.length > 0) {
      const lines = Math.ceil(n.below.length / perLine);
      n.marks = { x: n.x + w + 14, y: y + Math.max(0, (h - lines * pitch) / 2), perLine };
      tall = Math.max(h, lines * pitch);
      right = Math.max(right, n.marks.x + Math.min(n.below.length, perLine) * pitch);
    }
    y += tall + gap;
  };
  for (const n of tops) put(n);
  return { shown, dense, narrow: false, width: right + 2, height: y - gap + 2 };
}

function narrow(shown, width, dense) {
  const step = 14, h = dense ? 40 : 68, gap = 8;
  let y = 2;
  for (const n of shown) {
    n.x = 2 + Math.min(n.depth, 6) * step;
    n.y = y;
    n.w = width - n.x - 2;
    n.h = h;
    if (n.children.length > 0 && !n.open) {
      const perLine = Math.max(4, Math.floor((n.w - 20) / pitch));
      const lines = Math.ceil(n.below.length / perLine);
      n.marks = { x: n.x + 12, y: y + h - 2, perLine };
      n.h = h + lines * pitch + 6;
    } else {
      n.marks = undefined;
    }
    y += n.h + gap;
  }
  return { shown, dense, narrow: true, width, height: y - gap + 2 };
}

export { pitch };
