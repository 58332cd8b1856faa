// Where a ref is: how many sites show it, those that do not with their reasons, the way to them with what is in flight, and every site as a mark.

import { h, stateWord, swap, glyph } from "./dom.js";
import { Picture } from "./picture.js";
import { counts, cut, groupsOf, withAbove } from "./fabric.js";
import { severity, worst } from "./states.js";
import { bytes, count, short, timeOfDay } from "./format.js";
import { t, stateName } from "./words.js";
import { link, loading, section, table } from "./parts.js";
import { reasonCell } from "./pages-why.js";

const listed = 25; // sites that the list shows before it is asked for all

export function refPage(live, ref, go) {
  const feed = "where:" + ref;
  const picture = new Picture({ label: () => t("ref.path.picture", ref), go: (path) => go("/group/" + path) });
  const head = h("div"), late = h("div"), way = h("section", { class: "way" }, h("h2"), picture.el), rest = h("div");
  let all = false;
  const page = {
    feeds: ["tree", feed], title: () => t("ref.title", ref), el: h("div", { class: "page" }, head, late, way, rest),
    close: () => picture.close(),
    key: (e) => { if (e.key === "/") { picture.search.focus(); return true; } return false; },
    update() {
      const parts = live.get(feed), trouble = live.trouble(feed);
      const doc = parts?.get("ref");
      way.hidden = !doc;
      if (!doc) return swap(head, h("h1", { class: "mono" }, ref), trouble ? h("p", { class: "callout" }, trouble.code === "NotFound" ? t("ref.none", ref) : trouble.message) : loading());
      const sites = [...parts].filter(([key]) => key.startsWith("s/")).map(([, x]) => x);
      swap(head, summary(doc, sites));
      way.firstChild.textContent = t("ref.path");
      picture.show(steps(groupsOf(live.get("tree")), sites));
      swap(late, notYet(sites, ref));
      swap(rest, matrix(sites, ref), all ? section(t("ref.all"), listOf(sites, ref)) : h("p", {}, h("button", { type: "button", "data-all": true, "data-key": "all" }, t("ref.more", count(sites.length)))));
    },
  };
  rest.addEventListener("click", (e) => { if (e.target.closest("[data-all]")) { all = true; page.update(); } });
  return page;
}

function summary(doc, sites) {
  const wanted = sites.filter((x) => x.state !== "unsubscribed"), done = wanted.filter((x) => x.state === "delivered").length, left = sites.reduce((n, x) => n + x.bytesLeft, 0);
  const at = doc.ref.lastIndexOf(":");
  return [
    h("div", { class: "headline" }, h("h1", { class: "mono" }, doc.ref.slice(0, at), h("span", { class: "tagname" }, doc.ref.slice(at)))),
    h("p", { class: "sum" }, doc.digest ? h("code", { class: "digest" }, doc.digest) : h("span", {}, t("ref.deleted")), " ", h("span", { class: "quiet" }, t("ref.revision", count(doc.revision)))),
    h("div", { class: "chips" }, h("span", { class: "big" }, t("ref.delivered", count(done), count(wanted.length))), counts(sites).map(([state, n]) => h("span", { class: "chip" }, stateWord(state, stateName(state)), h("b", {}, count(n)))),
      left > 0 ? h("span", { class: "chip" }, t("left", bytes(left))) : null),
  ];
}

// steps are the groups with the state of the ref in them.
function steps(groups, sites) {
  const by = new Map();
  for (const x of sites) by.set(x.group, [...(by.get(x.group) || []), x]);
  return withAbove(groups.map((g) => {
    const here = by.get(g.group) || [], left = here.reduce((n, x) => n + x.bytesLeft, 0), state = worst(here.map((x) => x.state));
    const rate = g.members.reduce((n, m) => n + m.rate, 0), flows = here.some((x) => x.state === "delivering");
    return {
      path: g.group, state: here.length > 0 ? state : "unsubscribed", flows, cut: cut(g),
      note: [stateName(here.length > 0 ? state : "unsubscribed"), left > 0 ? t("left", bytes(left)) : "", flows && rate > 0 ? t("rate", bytes(rate)) : ""].filter(Boolean).join(" · "),
      sites: here.map((x) => ({ site: x.site, state: x.state, root: x.site === g.root })),
    };
  }));
}

const byPlace = (a, b) => (a.group === b.group ? (a.site < b.site ? -1 : 1) : a.group < b.group ? -1 : 1);

// matrix is every site as a mark, in a row for each group of the second tier.
function matrix(sites, ref) {
  const rows = new Map();
  for (const x of [...sites].sort(byPlace)) {
    const key = x.group.split("/").slice(0, 2).join("/");
    rows.set(key, [...(rows.get(key) || []), x]);
  }
  return section(t("ref.matrix"), h("div", { class: "matrix" }, [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([group, list]) => h("div", { class: "matrix-row" }, h("span", { class: "matrix-name" }, link("/group/" + group, group)),
    h("span", { class: "cells" }, list.map((x) => {
      const say = t("ref.cell", x.site, stateName(x.state));
      return h("a", { class: "cell", href: "#/why/" + encodeURI(x.site + "/" + ref), "aria-label": say, title: say + (x.reason ? " · " + x.reason : ""), "data-key": "cell " + x.site }, glyph(x.state, 18));
    }))))));
}

const isWell = (x) => x.state === "delivered" || x.state === "unsubscribed" || x.state === "accepted";

// notYet is the answer to "is it there yet, and if not, why?".
function notYet(sites, ref) {
  const late = sites.filter((x) => !isWell(x));
  if (late.length === 0) return h("p", { class: "calm-note" }, glyph("delivered"), " ", t("ref.allthere"));
  return section(t("ref.list"), listOf(late, ref, listed), late.length > listed ? h("p", { class: "quiet" }, "+ " + count(late.length - listed)) : null);
}

function listOf(sites, ref, most = Infinity) {
  const sorted = [...sites].sort((a, b) => (severity[b.state] ?? 5) - (severity[a.state] ?? 5) || byPlace(a, b));
  return table([t("site"), t("site.state"), t("ref.shows"), t("ref.left"), t("ref.since"), t("ref.next"), t("ref.why")], sorted.slice(0, most).map((x) => [
    [link("/site/" + x.site, x.site), " ", h("span", { class: "quiet" }, x.group)], stateWord(x.state, stateName(x.state)),
    x.digest ? h("code", {}, short(x.digest)) : h("span", { class: "quiet" }, t("ref.nothing")), x.bytesLeft > 0 ? bytes(x.bytesLeft) : "–", timeOfDay(x.since) || "–",
    x.nextAttempt ? [timeOfDay(x.nextAttempt), " ", h("span", { class: "quiet" }, t("ref.attempts", x.attempts))] : "–", reasonCell(x, x.site, ref)]));
}
