// The tree, a group and a site.

import { h, stateWord, swap, glyph } from "./dom.js";
import { Picture } from "./picture.js";
import { away, cards, counts, groupsOf, remaining, sitesOf } from "./fabric.js";
import { severity } from "./states.js";
import { ago, bytes, count, short, span, stamp, timeOfDay } from "./format.js";
import { t, stateName } from "./words.js";
import { facts, link, loading, refLink, section, table } from "./parts.js";
import { doing, reasonCell } from "./pages-why.js";

const attentionShown = 6;

export function treePage(live, go) {
  const picture = new Picture({ label: () => t("tree.picture"), go: (path) => go("/group/" + path) });
  const head = h("div", { class: "headline" }), attention = h("div"), keys = h("p", { class: "keys" });
  let only = "";
  const choose = (state) => { only = only === state ? "" : state; picture.only = only; page.update(); };
  const page = {
    feeds: ["tree"], title: () => t("tree.title"), el: h("div", { class: "page tree-page" }, head, attention, picture.el, keys),
    close: () => picture.close(),
    key: (e) => { if (e.key === "/") { picture.search.focus(); return true; } return false; },
    update() {
      const parts = live.get("tree"), groups = groupsOf(parts), sites = sitesOf(groups);
      if (!parts) return swap(attention, loading());
      swap(head, h("h1", {}, t("tree.title")), h("p", { class: "sum" }, t("tree.sites", count(sites.length), count(groups.length))));
      if (head.chips !== only + sites.map((x) => x.state) + t("title") + t("nav.tree")) {
        head.chips = only + sites.map((x) => x.state) + t("title") + t("nav.tree");
        this.chips?.remove();
        this.chips = h("div", { class: "chips" }, counts(sites).map(([state, n]) =>
          h("button", { type: "button", class: "chip", "aria-pressed": String(only === state), "aria-label": t("tree.filter", stateName(state), n), onclick: () => choose(state) }, stateWord(state, stateName(state)), h("b", {}, count(n)))));
        head.after(this.chips);
      }
      swap(attention, needs(groups, sites, live));
      keys.textContent = t("tree.keys");
      if (groups.length > 0) picture.show(cards(groups));
    },
  };
  return page;
}

// needs lists what is not well, worst first.
function needs(groups, sites, live) {
  // A group may be worse than its sites: when it has no root, or its parent is away.
  const alone = groups.filter((g) => !g.members.some((m) => (severity[m.state] ?? 5) >= (severity[g.state] ?? 5))).map((g) => ({ state: g.state, reason: g.reason, group: g.group }));
  const bad = [...sites, ...alone].filter((m) => (severity[m.state] ?? 5) >= 5).sort((a, b) => (severity[b.state] ?? 5) - (severity[a.state] ?? 5));
  if (groups.length === 0) return h("p", { class: "calm-note" }, live.trouble("tree") ? "" : t("tree.empty"));
  if (bad.length === 0) return null;
  return h("section", { class: "needs" }, h("h2", {}, t("tree.worst")), h("ul", {}, bad.slice(0, attentionShown).map((m) =>
    h("li", {}, stateWord(m.state, stateName(m.state)), h("span", { class: "who" }, m.site ? [link("/site/" + m.site, m.site), " ", h("span", { class: "quiet" }, m.group)] : link("/group/" + m.group, m.group)), h("span", { class: "why" }, m.reason)))),
  bad.length > attentionShown ? h("p", { class: "quiet" }, "+ " + count(bad.length - attentionShown)) : null);
}

export function groupPage(live, path, go) {
  const el = h("div", { class: "page" });
  return {
    feeds: ["tree"], title: () => t("group.title", path), el,
    update() {
      const groups = groupsOf(live.get("tree")), g = groups.find((x) => x.group === path);
      if (!live.get("tree")) return swap(el, loading());
      if (!g) return swap(el, h("h1", {}, path), h("p", {}, t("group.none")));
      const below = groups.filter((x) => x.group.startsWith(path + "/"));
      swap(el, h("div", { class: "headline" }, h("h1", {}, crumbs(path)), stateWord(g.state, stateName(g.state))),
        g.state === "unreachable" && g.answers ? h("p", { class: "sum" }, t("group.answers", g.root)) : null, g.reason ? h("p", { class: "reason" }, g.reason) : null, doing(groupMend(g)),
        facts([
          [t(away(g) ? "group.parent.was" : "group.parent"), g.parent ? link("/group/" + g.parent, g.parent) : t("group.hq")], [t("group.root"), g.root ? [link("/site/" + g.root, g.root), " ", h("span", { class: "quiet" }, t("group.term", count(g.term)))] : t("none")],
          [t("group.carrier"), g.carrier ? link("/site/" + g.carrier, g.carrier) : null], [t("group.revision"), count(g.revision)], [t("lag.label"), lag(g)],
          [t("group.contact"), contact(g, g.answers, live)], [t("group.labels"), Object.entries(g.labels).map(([k, v]) => h("code", {}, k + "=" + v, " "))],
          [t("group.freeze"), g.freeze ? t("group.freeze.value", stamp(g.freeze.until), g.freeze.by, g.freeze.reason) : null],
        ]),
        section(t("group.members"), table([t("site"), t("site.state"), t("site.bytes"), t("site.rate"), t("reason")], g.members.map((m) => [
          [link("/site/" + m.site, m.site), m.site === g.root ? h("span", { class: "tag" }, t("root")) : null, m.site === g.carrier ? h("span", { class: "tag" }, t("carrier")) : null],
          stateWord(m.state, stateName(m.state)), m.bytesLeft > 0 ? bytes(m.bytesLeft) : "–", m.rate > 0 ? t("rate", bytes(m.rate)) : "–", m.reason || "–"]))),
        below.length > 0 ? section(t("group.children"), table([t("group"), t("site.state"), t("lag.label"), t("reason")], below.map((x) => [link("/group/" + x.group, x.group), stateWord(x.state, stateName(x.state)), lag(x), x.reason || "–"]))) : null);
    },
  };
}

// lag is said as the text of the tree says it: revisions, and for how long the oldest of what is lacking has been, which may be a ref of a revision that was seen.
function lag(x) {
  if (x.lagSeconds > 0 && (x.lag > 0 || x.lagSeconds >= 1)) return t("lag.value", count(x.lag), span(Math.max(1, x.lagSeconds)));
  return x.lag > 0 ? t("lag.revisions", count(x.lag)) : t("lag.none");
}

// contact: who answers is heard of every second, which does not come here each time, as it changes nothing. While the agent that tells of it is heard, that is now.
const contact = (x, answers, live) => (answers && x.lastContact && live.connected() && !live.trouble("tree") ? t("just-now") : ago(x.lastContact, live.now()));

// groupMend is what a person does about a group that nobody hears of, or that answers while members do not.
function groupMend(g) {
  if (away(g)) return t(g.parent ? "away.mend.link" : "away.mend", g.root || g.group, g.parent);
  const lost = g.members.filter((m) => m.state === "unreachable").map((m) => m.site);
  return lost.length > 0 ? t("away.mend", lost.join(", ")) : "";
}

// unheard says that nobody hears of a site now.
const unheard = (m) => m.state === "unreachable" || m.state === "unknown";

const crumbs = (path) => path.split("/").flatMap((name, i, all) => [i > 0 ? h("span", { class: "slash" }, "/") : null, i < all.length - 1 ? link("/group/" + all.slice(0, i + 1).join("/"), name) : name]);

export function sitePage(live, name) {
  const el = h("div", { class: "page" }), feed = "pending:" + name;
  return {
    feeds: ["tree", feed], title: () => t("site.title", name), el,
    update() {
      const sites = sitesOf(groupsOf(live.get("tree"))), m = sites.find((x) => x.site === name);
      if (!live.get("tree")) return swap(el, loading());
      if (!m) return swap(el, h("h1", {}, name), h("p", {}, t("site.none")));
      const roles = [m.root ? t("root") : null, m.carrier ? t("carrier") : null, m.state === "witness" ? stateName("witness") : null].filter(Boolean);
      swap(el, h("div", { class: "headline" }, h("h1", {}, name), stateWord(m.state, stateName(m.state))),
        m.reason ? h("p", { class: "reason" }, m.reason) : null, m.state === "unreachable" ? doing(t("away.mend", name)) : null,
        facts([
          [t("group"), link("/group/" + m.group, m.group)], [t("site.roles"), roles.join(", ") || t("site.member")],
          [t("site.registry"), m.registryType === "none" ? t("site.noregistry") : [m.registry, " ", h("span", { class: "quiet" }, m.registryType)]], [t("site.version"), m.version],
          [t("site.revision"), count(m.revision)], [t("lag.label"), m.registryType === "none" || (unheard(m) && !m.lag && !m.lagSeconds) ? null : lag(m)], [t("site.refs"), count(m.pending)], [t("site.bytes"), m.bytesLeft > 0 ? bytes(m.bytesLeft) : t("none")], [t("site.rate"), m.rate > 0 ? t("rate", bytes(m.rate)) : "–"],
          [t("site.eta"), remaining(m) > 0 ? t("eta", span(remaining(m))) : null], [t("site.contact"), contact(m, !unheard(m), live)],
          [t("site.disk"), room(m.disk)], [t("site.registrydisk"), room(m.registryDisk)], [t("site.certificate"), m.certificateExpires ? t("site.certificate.value", stamp(m.certificateExpires)) : null],
        ]),
        m.registryType === "none" ? null : section(t("site.pending"), pending(live, feed, m)));
    },
  };
}

const room = (disk) => (disk ? t("site.disk.value", bytes(disk.free), bytes(disk.total)) : null);

function pending(live, feed, m) {
  const parts = live.get(feed), trouble = live.trouble(feed);
  if (trouble) return h("p", { class: "quiet" }, t("site.pending.unknown", trouble.message));
  if (!parts) return loading();
  const refs = [...parts.values()].sort((a, b) => (severity[b.state] ?? 5) - (severity[a.state] ?? 5) || (a.ref < b.ref ? -1 : 1));
  if (refs.length === 0 && unheard(m)) return h("p", { class: "quiet" }, t("site.pending.unheard"));
  if (refs.length === 0) return h("p", { class: "calm-note" }, glyph("synced"), " ", t("site.pending.none"));
  return [table([t("ref"), t("site.state"), t("ref.left"), t("ref.since"), t("ref.next"), t("ref.why")], refs.map((r) => [
    refLink(r.ref), stateWord(r.state, stateName(r.state)), r.bytesLeft > 0 ? bytes(r.bytesLeft) : "–", timeOfDay(r.since) || "–", r.nextAttempt ? [timeOfDay(r.nextAttempt), " ", h("span", { class: "quiet" }, t("ref.attempts", r.attempts))] : "–",
    [reasonCell(r, m.site, r.ref), r.digest && r.digest !== r.want ? h("span", { class: "quiet" }, " ", t("ref.shows"), " ", short(r.digest)) : null]])),
  m.pending > refs.length ? h("p", { class: "quiet" }, t("site.pending.more", count(m.pending - refs.length))) : null];
}
