// What the page makes of the feed of the tree: groups and sites in order, counts, what needs attention.

import { bytes, span } from "./format.js";
import { severity } from "./states.js";
import { t, stateName } from "./words.js";

const byPath = (a, b) => (a.split("/").join("\u0001") < b.split("/").join("\u0001") ? -1 : 1);

export function groupsOf(parts) {
  const out = [];
  for (const [key, g] of parts || []) if (key[0] !== "!") out.push(g);
  return out.sort((a, b) => byPath(a.group, b.group));
}

export const sitesOf = (groups) => groups.flatMap((g) => g.members.map((m) => ({ ...m, group: g.group, root: g.root === m.site, carrier: g.carrier === m.site })));

// remaining time at the rate of now, in seconds; 0: not known.
export const remaining = (m) => (m.bytesLeft > 0 && m.rate > 0 ? m.bytesLeft / m.rate : 0);

// note of a group: what is most worth saying in one line.
export function noteOf(g) {
  const left = g.members.reduce((n, m) => n + m.bytesLeft, 0), rate = g.members.reduce((n, m) => n + m.rate, 0);
  const parts = [g.state === "unreachable" && g.answers ? t("group.memberaway") : stateName(g.state)];
  if (g.freeze) parts.push(t("frozen"));
  if (left > 0) parts.push(t("left", bytes(left)));
  if (left > 0 && rate > 0) parts.push(t("rate", bytes(rate)));
  if (g.lag > 0 && left === 0) parts.push(t("lag", String(g.lag)));
  return parts.join(" · ");
}

// away says that nobody hears of a group now. One that answers is unreachable too when a member is: a group is as its worst site is.
export const away = (g) => g.state === "unreachable" && !g.answers;

// cut says that there is no link between a group and the one above.
export const cut = (g) => away(g) || (g.tier > 0 && !g.parent);

// cards are the groups as the picture wants them.
export function cards(groups) {
  const list = groups.map((g) => ({
    path: g.group, state: g.state, note: noteOf(g), flows: g.members.some((m) => m.rate > 0 && m.bytesLeft > 0), cut: cut(g),
    sites: g.members.map((m) => ({ site: m.site, state: m.state, root: m.site === g.root })),
  }));
  return withAbove(list);
}

// withAbove adds the group above the topmost, where it is not seen from here.
export function withAbove(list) {
  const top = list[0];
  if (top && top.path.includes("/")) {
    const up = top.path.slice(0, top.path.lastIndexOf("/"));
    if (!list.some((g) => g.path === up)) list.unshift({ path: up, state: "unknown", sites: [], ghost: true, label: t("tree.above") });
  }
  return list;
}

export function counts(sites) {
  const out = new Map();
  for (const m of sites) out.set(m.state, (out.get(m.state) || 0) + 1);
  return [...out].sort((a, b) => (severity[b[0]] ?? 5) - (severity[a[0]] ?? 5));
}

export const eta = (m) => (remaining(m) > 0 ? t("eta", span(remaining(m))) : "");
