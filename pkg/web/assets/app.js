// The frame: which page is shown, the language, the theme, and whether what is shown is current.

import { h, swap, glyph } from "./dom.js";
import { Live, ask } from "./live.js";
import { groupsOf } from "./fabric.js";
import { span, stamp } from "./format.js";
import { language, speak, t } from "./words.js";
import { groupPage, sitePage, treePage } from "./pages-tree.js";
import { refPage } from "./pages-ref.js";
import { whyPage } from "./pages-why.js";
import { rolloutPage, rolloutsPage } from "./pages-rollouts.js";
import { conflictsPage, eventsPage, imagesPage } from "./pages-lists.js";
import { link } from "./parts.js";

// What a person chose is kept in this browser, where that may be.
const kept = {
  get: (key) => { try { return localStorage.getItem("fanout." + key); } catch { return null; } },
  set: (key, value) => { try { localStorage.setItem("fanout." + key, value); } catch { /* then for this page alone */ } },
};

const main = document.getElementById("main"), top = document.getElementById("top"), notices = document.getElementById("notices"), skip = document.getElementById("skip");
let me = {}, page, where = "", theme = kept.get("theme") || "auto", drawing = false, due = 0;

const live = new Live(() => later());
const go = (to) => { location.hash = "#" + encodeURI(to); };

const routes = [
  [/^\/?$/, () => treePage(live, go), "tree"], [/^\/group\/(.+)$/, (p) => groupPage(live, p, go), "tree"], [/^\/site\/(.+)$/, (n) => sitePage(live, n), "tree"],
  [/^\/images$/, () => imagesPage(live), "images"], [/^\/ref\/(.+)$/, (r) => refPage(live, r, go), "images"],
  [/^\/why\/([^/]+)\/(.+)$/, (site, ref) => whyPage(live, site, ref), "images"],
  [/^\/rollouts$/, () => rolloutsPage(live), "rollouts"], [/^\/rollout\/(.+)$/, (id) => rolloutPage(live, id), "rollouts"],
  [/^\/conflicts$/, () => conflictsPage(live), "conflicts"], [/^\/events$/, () => eventsPage(live, () => me), "events"],
];

const missing = () => ({ feeds: ["tree"], title: () => t("title"), el: h("div", { class: "page" }), update() { swap(this.el, h("h1", {}, t("notfound")), link("/", t("back"))); } });

function route() {
  let path = location.hash.slice(1);
  try { path = decodeURI(path); } catch { /* as it is */ }
  const first = page === undefined;
  page?.close?.();
  const found = routes.map(([re, make, tab]) => [re.exec(path), make, tab]).find(([m]) => m);
  where = found ? found[2] : "";
  page = found ? found[1](...found[0].slice(1)) : missing();
  main.replaceChildren(page.el);
  live.watch(page.feeds);
  draw();
  if (!first) { main.focus({ preventScroll: true }); scrollTo(0, 0); }
}

// later draws soon; after a draw that took long, not so soon.
function later() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    const began = performance.now();
    draw();
    due = performance.now() + 4 * (performance.now() - began);
  }, Math.max(0, due - performance.now()));
}

function draw() {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  document.documentElement.dataset.theme = theme;
  document.title = page.title() + " · fanout";
  skip.textContent = t("skip");
  bar();
  swap(notices, notes());
  page.update();
}

function bar() {
  const age = live.heard ? (Date.now() - live.heard) / 1000 : 0, on = live.connected();
  const tab = (name, to) => h("a", { href: "#" + to, "aria-current": where === name ? "page" : undefined, "data-key": "nav " + name }, t("nav." + name));
  const status = !live.heard ? t("connecting") : on ? t("live") : t("stale", span(age));
  swap(top,
    h("a", { class: "brand", href: "#/", "data-key": "brand" }, "fanout"),
    h("nav", { "aria-label": t("nav") }, tab("tree", "/"), tab("images", "/images"), tab("rollouts", "/rollouts"), tab("conflicts", "/conflicts"), tab("events", "/events")),
    h("div", { class: "corner" },
      h("span", { class: "status" }, me.site ? h("span", { class: "served" }, t("served", me.site)) : null, h("span", { class: "state " + (on ? "good" : "bad"), title: on ? t("live.label") : "" }, glyph(on ? "synced" : "degraded", 14), h("span", {}, status))),
      h("button", { type: "button", "data-do": "theme", "data-key": "theme", "aria-label": t("theme." + theme), title: t("theme." + theme) }, { auto: "◐", light: "☀", dark: "☾" }[theme]),
      h("button", { type: "button", "data-do": "language", "data-key": "language", "aria-label": t("language.label"), lang: language() === "zh" ? "en" : "zh-CN" }, t("language"))));
}

// notes say what the person at the page must know of what he sees.
function notes() {
  const out = [], groups = groupsOf(live.get("tree")), first = groups[0], trouble = live.trouble("tree");
  if (live.heard && !live.connected()) out.push(h("p", { class: "callout" }, t("trouble.stale", span((Date.now() - live.heard) / 1000))));
  else if (trouble) out.push(h("p", { class: "callout" }, t("trouble", trouble.message)));
  const limits = live.get("tree")?.get("!limits") || {};
  if (limits.noRoot) out.push(h("p", { class: "callout" }, t("noroot", limits.noRoot)));
  if (limits.cutOff) out.push(h("p", { class: "callout" }, t("cutoff", limits.cutOff.group, stamp(limits.cutOff.since))));
  if (first && first.tier > 0) out.push(h("p", { class: "info" }, t("cut", first.group)));
  return out;
}

top.addEventListener("click", (e) => {
  const what = e.target.closest("[data-do]")?.dataset.do;
  if (what === "theme") {
    theme = { auto: "light", light: "dark", dark: "auto" }[theme];
    kept.set("theme", theme);
  } else if (what === "language") {
    speak(language() === "en" ? "zh" : "en");
    kept.set("language", language());
  } else {
    return;
  }
  draw();
});

skip.addEventListener("click", (e) => { e.preventDefault(); main.focus(); });
addEventListener("hashchange", route);
addEventListener("keydown", (e) => {
  if (e.target.matches?.("input, textarea") || e.altKey || e.ctrlKey || e.metaKey) {
    if (e.key === "Escape") e.target.blur?.();
    return;
  }
  if (page.key?.(e)) e.preventDefault();
});

speak(kept.get("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
const introduce = () => ask("version").then((v) => { me = v; later(); }, () => setTimeout(introduce, 3000));
introduce();
route();
