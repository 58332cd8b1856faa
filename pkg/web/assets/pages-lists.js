// Images, conflicts and events.

import { h, stateWord, swap, glyph } from "./dom.js";
import { ask } from "./live.js";
import { groupsOf } from "./fabric.js";
import { bytes, count, short, stamp, timeOfDay } from "./format.js";
import { reasonName } from "./reasons.js";
import { t } from "./words.js";
import { link, loading, refLink, section, table } from "./parts.js";

const mostImages = 500;

export function imagesPage(live) {
  const search = h("input", { type: "search", id: "image-search", autocomplete: "off", spellcheck: "false" }), all = h("input", { type: "checkbox", id: "image-all" }), allWord = h("label", { for: "image-all" });
  const head = h("div"), out = h("div");
  let doc, wrong, asked = "", timer, closed = false, running = false;
  const fetchNow = async () => {
    if (running) return;
    running = true;
    const want = key();
    try {
      doc = await ask(`images?limit=${mostImages}&contains=${encodeURIComponent(search.value.trim())}${all.checked ? "&all=true" : ""}`);
      wrong = undefined;
    } catch (e) { wrong = e.message; }
    running = false;
    asked = want;
    if (!closed) page.update();
  };
  // The catalog has changed when its revision has, and that is in the feed of the tree.
  const key = () => [groupsOf(live.get("tree")).reduce((n, g) => Math.max(n, g.revision), 0), search.value.trim(), all.checked].join(" ");
  const later = () => { clearTimeout(timer); timer = setTimeout(fetchNow, 150); };
  search.addEventListener("input", later);
  all.addEventListener("change", fetchNow);
  const page = {
    feeds: ["tree"], title: () => t("images.title"), el: h("div", { class: "page" }, head, h("div", { class: "tools" }, h("div", { class: "searching" }, search), h("span", { class: "check" }, all, allWord)), out),
    close() { closed = true; clearTimeout(timer); },
    key: (e) => { if (e.key === "/") { search.focus(); return true; } return false; },
    update() {
      if (live.get("tree") && asked !== key()) fetchNow();
      swap(head, h("div", { class: "headline" }, h("h1", {}, t("images.title"))));
      search.setAttribute("placeholder", t("images.search"));
      search.setAttribute("aria-label", t("images.search"));
      allWord.textContent = t("images.all");
      if (wrong) return swap(out, h("p", { class: "callout" }, wrong));
      if (!doc) return swap(out, loading());
      if (doc.images.length === 0) return swap(out, h("p", { class: "calm-note" }, search.value ? t("images.none") : t("images.empty")));
      swap(out, table([t("ref"), t("ref.digest"), t("images.size"), t("images.revision"), t("images.published"), t("images.by")], doc.images.map((x) => [
        [refLink(x.ref), x.deleted ? h("span", { class: "tag" }, t("images.deleted")) : null, x.referrers > 0 ? h("span", { class: "quiet" }, " ", t("images.referrers", x.referrers)) : null],
        h("code", {}, short(x.digest)), x.size > 0 ? bytes(x.size) : "–", count(x.revision), timeOfDay(x.publishedAt), [x.publishedBy, x.origin ? h("span", { class: "quiet" }, " ", t("images.at", x.origin)) : null]])),
      doc.more ? h("p", { class: "quiet" }, t("images.more", mostImages)) : null);
    },
  };
  return page;
}

export function conflictsPage(live) {
  const el = h("div", { class: "page" });
  return {
    feeds: ["tree", "conflicts"], title: () => t("conflicts.title"), el,
    update() {
      const parts = live.get("conflicts"), trouble = live.trouble("conflicts");
      const pick = (p) => [...(parts || [])].filter(([k]) => k.startsWith(p)).map(([, v]) => v);
      const conflicts = pick("c/"), deletions = pick("d/");
      swap(el, h("div", { class: "headline" }, h("h1", {}, t("conflicts.title"))),
        trouble ? h("p", { class: "callout" }, trouble.code === "FailedPrecondition" ? t("conflicts.hq") : trouble.message) : null,
        !parts ? loading() : null, parts && !trouble && conflicts.length + deletions.length === 0 ? h("p", { class: "calm-note" }, glyph("synced"), " ", t("conflicts.none")) : null,
        conflicts.length > 0 ? section(t("conflicts.list"), h("ul", { class: "cards" }, conflicts.map(conflict))) : null,
        deletions.length > 0 ? section(t("deletions.list"), h("ul", { class: "cards" }, deletions.map(deletion))) : null);
    },
  };
}

const side = (word, p, state) => h("div", { class: "side" }, stateWord(state, word), h("code", { class: "digest" }, p.digest), h("span", { class: "quiet" }, [p.site ? t("images.at", p.site) : "", p.pushedAt ? t("conflicts.pushed", stamp(p.pushedAt)) : "", p.publishedBy ? t("rollouts.by", p.publishedBy) : ""].filter(Boolean).join(" · ")));

const conflict = (c) => h("li", { class: "item" }, h("div", { class: "item-head" }, refLink(c.ref), h("span", { class: "quiet" }, timeOfDay(c.notedAt))), c.reason ? h("p", {}, c.reason) : null,
  h("div", { class: "sides" }, side(t("conflicts.won"), c.winner, "succeeded"), side(t("conflicts.lost"), c.loser, "conflict")),
  h("p", { class: "quiet" }, t("conflicts.settle")), h("code", { class: "command" }, `fanoutctl conflicts settle ${c.ref} --keep DIGEST`));

const deletion = (d) => h("li", { class: "item" }, h("div", { class: "item-head" }, refLink(d.ref), stateWord(d.state === "held" ? "waiting" : "syncing", t("deletions.state." + d.state))),
  h("p", {}, t("deletions.gone"), " ", link("/site/" + d.site, d.site), " · ", t("deletions.seen"), " ", stamp(d.notedAt)),
  d.state === "held" ? [h("p", { class: "quiet" }, t("deletions.allow")), h("code", { class: "command" }, `fanoutctl deletions allow ${d.ref}`), " ", h("code", { class: "command" }, `fanoutctl deletions restore ${d.ref}`)] : null);

export function eventsPage(live, me) {
  const search = h("input", { type: "search", id: "event-search", autocomplete: "off", spellcheck: "false" }), warn = h("input", { type: "checkbox", id: "event-warn" }), warnWord = h("label", { for: "event-warn" });
  const head = h("div"), out = h("div");
  const page = {
    feeds: ["tree", "events"], title: () => t("events.title"), el: h("div", { class: "page" }, head, h("div", { class: "tools" }, h("div", { class: "searching" }, search), h("span", { class: "check" }, warn, warnWord)), out),
    key: (e) => { if (e.key === "/") { search.focus(); return true; } return false; },
    update() {
      swap(head, h("div", { class: "headline" }, h("h1", {}, t("events.title"))), me().site ? h("p", { class: "quiet" }, t("events.of", me().site)) : null);
      search.setAttribute("placeholder", t("events.search"));
      search.setAttribute("aria-label", t("events.search"));
      warnWord.textContent = t("events.warnings");
      const parts = live.get("events"), trouble = live.trouble("events"), words = search.value.trim().toLowerCase();
      if (trouble) return swap(out, h("p", { class: "callout" }, trouble.message));
      if (!parts) return swap(out, loading());
      const list = [...parts.values()].filter((e) => (!warn.checked || e.type === "Warning") && (!words || [e.reason, reasonName(e.reason), e.ref, e.message].join(" ").toLowerCase().includes(words)))
        .sort((a, b) => (a.time < b.time ? 1 : a.time > b.time ? -1 : 0));
      if (list.length === 0) return swap(out, h("p", { class: "calm-note" }, parts.size === 0 ? t("events.none") : t("events.nomatch")));
      swap(out, table([t("time"), t("reason"), t("ref"), t("message")], list.map((e) => [
        h("time", { datetime: e.time, title: stamp(e.time) }, timeOfDay(e.time)), h("span", { class: "state " + (e.type === "Warning" ? "bad" : "calm") }, glyph(e.type === "Warning" ? "failed" : "witness"), h("span", { title: e.reason }, reasonName(e.reason))),
        e.ref ? refLink(e.ref) : "–", [e.message, e.count > 1 ? h("span", { class: "quiet" }, " ", t("events.count", e.count, timeOfDay(e.first))) : null]]), "events"));
    },
  };
  search.addEventListener("input", () => page.update());
  warn.addEventListener("change", () => page.update());
  return page;
}
