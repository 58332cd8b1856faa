// The picture of the tree: cards for groups, lines for links, marks for what is folded; zoom, keys, search. It is used for the whole tree and for the way of one ref.

import { h, s, mark, swap } from "./dom.js";
import { forest, place, pitch } from "./layout.js";
import { kindOf, severity } from "./states.js";
import { t, stateName } from "./words.js";

// fit shortens a text to a width in px, at about px for a letter; wide letters count twice.
function fit(text, width, px) {
  let used = 0, i = 0;
  for (const c of text) {
    used += c.codePointAt(0) > 0x2e7f ? px * 1.8 : px;
    if (used > width) return text.slice(0, Math.max(1, i - 1)) + "…";
    i += c.length;
  }
  return text;
}

export class Picture {
  // label: the name of the picture. go(path): a group was chosen.
  constructor({ label, go }) {
    this.label = label;
    this.go = go;
    this.chosen = new Map(); // path → folded, by a person
    this.zoom = 0; // 0: fit
    this.words = "";
    this.only = "";
    this.at = "";
    this.frame = h("div", { class: "frame" });
    this.stage = h("div", { class: "stage" }, this.frame);
    this.tools = h("div", { class: "tools" });
    this.found = h("span", { class: "found", role: "status" });
    this.search = h("input", { type: "search", id: "tree-search", autocomplete: "off", spellcheck: "false" });
    this.search.addEventListener("input", () => { this.words = this.search.value.trim().toLowerCase(); this.draw(); });
    this.search.addEventListener("keydown", (e) => { if (e.key === "Enter") this.focusFound(); });
    this.frame.addEventListener("click", (e) => this.clicked(e));
    this.frame.addEventListener("keydown", (e) => this.keyed(e));
    this.frame.addEventListener("focusin", (e) => { const n = e.target.closest("[data-path]"); if (n) this.at = n.dataset.path; });
    this.stage.addEventListener("wheel", (e) => { if (e.ctrlKey) { e.preventDefault(); this.scale(e.deltaY < 0 ? 1.15 : 1 / 1.15); } }, { passive: false });
    this.drag();
    this.el = h("div", { class: "picture" }, this.tools, this.stage);
    this.seen = new ResizeObserver(() => { if (this.frame.clientWidth !== this.width) this.draw(); });
    this.seen.observe(this.stage);
  }

  // close ends what goes on.
  close() { this.seen.disconnect(); }

  // show these groups: [{path, state, sites: [{site, state, root}], note, flows, cut, label}]. Called with each change.
  show(groups) {
    this.groups = groups;
    this.draw();
  }

  folded(n) {
    const by = this.chosen.get(n.path);
    if (this.matching && this.hits(n)) return false;
    if (by !== undefined) return by;
    return this.groups.length > 24 && n.depth >= 1;
  }

  // hits says whether something below a node is looked for.
  hits(n) { return n.children.some((c) => this.matching(c) || this.hits(c)); }

  matcher() {
    const words = this.words, only = this.only;
    if (!words && !only) return undefined;
    return (n) => (!words || n.path.toLowerCase().includes(words) || n.sites.some((x) => x.site.toLowerCase().includes(words))) &&
      (!only || n.sites.some((x) => x.state === only));
  }

  draw() {
    if (!this.groups) return;
    const focused = this.frame.contains(document.activeElement);
    this.width = this.frame.clientWidth;
    const { nodes, tops } = forest(this.groups);
    this.matching = this.matcher();
    const p = place(tops, (n) => this.folded(n), this.width);
    this.placed = p;
    this.nodes = nodes;
    if (!p.shown.some((n) => n.path === this.at)) this.at = p.shown[0]?.path ?? "";
    const z = this.zoom || Math.min(p.dense || p.narrow ? 1 : 1.25, Math.max(0.55, this.width / p.width));
    this.now = z;
    const lines = p.shown.filter((n) => n.parent).map((n) => this.line(n, p));
    const cards = p.shown.map((n) => this.card(n, p));
    swap(this.frame, s("svg", { viewBox: `0 0 ${p.width} ${p.height}`, width: Math.round(p.width * z), height: Math.round(p.height * z), role: "tree", "aria-label": this.label(), class: p.dense ? "dense" : "roomy" },
      s("g", { "aria-hidden": "true" }, lines), cards));
    if (focused && !this.frame.contains(document.activeElement)) this.focus(this.at);
    if (this.matching) {
      const n = [...nodes.values()].filter(this.matching).length;
      this.found.textContent = n === 0 ? t("tree.search.none") : t("tree.search.found", n);
    } else {
      this.found.textContent = "";
    }
    this.drawTools();
  }

  drawTools() {
    const lang = t("tree.search");
    if (this.tooled === lang) return;
    this.tooled = lang;
    this.search.setAttribute("placeholder", lang);
    this.search.setAttribute("aria-label", lang);
    const button = (key, text, on) => h("button", { type: "button", class: "tool", "aria-label": t(key), title: t(key), onclick: on }, text);
    this.tools.replaceChildren(
      h("div", { class: "searching" }, this.search, this.found),
      h("div", { class: "zooming", role: "group", "aria-label": t("tree.zoom") },
        button("tree.out", "−", () => this.scale(1 / 1.25)), button("tree.fit", t("tree.fit"), () => { this.zoom = 0; this.draw(); }), button("tree.in", "+", () => this.scale(1.25)),
        button("tree.fold", t("tree.fold"), () => this.foldHealthy()), button("tree.unfold", t("tree.unfold"), () => this.unfoldAll())));
  }

  scale(by) {
    this.zoom = Math.min(2.5, Math.max(0.2, this.now * by));
    const x = this.stage.scrollLeft / this.now, y = this.stage.scrollTop / this.now;
    this.draw();
    this.stage.scrollTo(x * this.now, y * this.now);
  }

  foldHealthy() {
    for (const n of this.nodes.values()) {
      if (n.children.length > 0) this.chosen.set(n.path, n.depth > 0 && (severity[n.worstBelow] ?? 5) <= 1);
    }
    this.draw();
  }

  unfoldAll() {
    for (const n of this.nodes.values()) this.chosen.set(n.path, false);
    this.draw();
  }

  line(n, p) {
    const from = n.parent, y = n.y + (p.narrow ? 20 : n.h / 2);
    const flows = n.flows ? " flows" : "", dead = n.cut ? " cut" : "", dim = this.dim(n) && " dim" || "";
    if (p.narrow) {
      const x = from.x + 6;
      return s("path", { class: "link" + flows + dead + dim, d: `M${x} ${from.y + from.h}V${y}H${n.x}` });
    }
    const x1 = from.x + from.w, x2 = n.x, mid = (x1 + x2) / 2, y1 = from.y + from.h / 2;
    if (p.dense) return s("path", { class: "link" + flows + dead + dim, d: `M${x1} ${y1}H${mid}V${y}H${x2}` }); // one trunk, not a sheaf
    return s("path", { class: "link" + flows + dead + dim, d: Math.abs(y1 - y) < 1 ? `M${x1} ${y1}H${x2}` : `M${x1} ${y1}C${mid} ${y1} ${mid} ${y} ${x2} ${y}` });
  }

  dim(n) { return this.matching && !this.matching(n); }

  say(n) {
    const parts = [t("tree.node", n.path, stateName(n.state), n.sites.length)];
    if (n.note) parts.push(n.note);
    if (n.children.length > 0) parts.push(t("tree.below", n.count));
    if (n.worst !== n.state) parts.push(t("tree.nodebelow", stateName(n.worstBelow)));
    return parts.join(", ");
  }

  card(n, p) {
    const tall = p.narrow ? (p.dense ? 40 : 68) : n.h, kids = n.children.length > 0;
    const below = n.worst !== n.state;
    const toggle = kids ? 54 : 8;
    const one = p.dense;
    const y = one ? tall / 2 : 20;
    const g = s("g", {
      class: `card ${kindOf(n.worst)}${this.dim(n) ? " dim" : ""}${n.ghost ? " ghost" : ""}`, transform: `translate(${n.x} ${n.y})`, role: "treeitem", tabindex: n.path === this.at ? "0" : "-1",
      "aria-level": n.depth + 1, "aria-label": n.ghost ? n.label : this.say(n), "aria-expanded": kids ? String(n.open) : undefined, "data-path": n.path, "data-key": n.path,
    }, s("rect", { class: "box", width: n.w, height: p.narrow ? n.h : tall, rx: 7 }), s("rect", { class: "edge", width: 4, height: p.narrow ? n.h : tall, rx: 2 }));
    const members = one ? Math.min(n.sites.length, 4) * 14 + 8 : 0, badge = below || (one && kids) ? 22 : 0, nameWidth = n.w - 38 - toggle - members - badge;
    g.append(mark(n.state, 12, y - 8, 16), s("text", { class: "name", x: 34, y: y + 5 }, fit(n.name, nameWidth, 7.6)));
    if (n.ghost) {
      g.append(s("text", { class: "note", x: 34, y: 42 }, n.label));
      return g;
    }
    if (one) this.siteMarks(g, n, n.w - toggle - badge - members, y);
    else { this.siteNames(g, n, p); g.append(s("text", { class: "note " + kindOf(n.state), x: 12, y: tall - 10 }, fit(n.note || stateName(n.state), n.w - 24, 6.1))); }
    if (below) g.append(mark(n.worstBelow, n.w - toggle - 18, y - 8, 16));
    if (kids) {
      g.append(s("g", { class: "fold", "data-fold": n.path, transform: `translate(${n.w - 50} ${y - 12})` }, s("rect", { width: 44, height: 24, rx: 5 }),
        s("path", { class: "chevron", d: n.open ? "M8 9.5l4 4l4-4" : "M10 8l4 4l-4 4" }), s("text", { x: 22, y: 16.5 }, String(n.count))));
    }
    if (n.marks) {
      n.below.forEach((x, i) => g.append(mark(x.state, n.marks.x - n.x + (i % n.marks.perLine) * pitch, n.marks.y - n.y + Math.floor(i / n.marks.perLine) * pitch + 2, 14)));
    }
    return g;
  }

  // siteNames writes the members of a group, or only their marks where the names have no room.
  siteNames(g, n, p) {
    const need = n.sites.reduce((sum, x) => sum + 26 + x.site.length * 6.6 + (x.root ? 12 : 0), 0);
    let x = 12;
    const y = p.narrow ? 41 : 46;
    for (const m of n.sites) {
      if (x > n.w - 30) break;
      g.append(mark(m.state, x, y - 10, 12));
      x += 15;
      if (need <= n.w - 12) {
        const name = m.site + (m.root && n.sites.length > 1 ? " ★" : "");
        g.append(s("text", { class: "site", x, y }, name));
        x += name.length * 6.6 + 11;
      }
    }
  }

  siteMarks(g, n, x, y) {
    n.sites.slice(0, 4).forEach((m, i) => g.append(mark(m.state, x + i * 14, y - 5.5, 11)));
  }

  clicked(e) {
    const fold = e.target.closest("[data-fold]");
    if (fold) return this.toggle(fold.dataset.fold);
    const card = e.target.closest("[data-path]");
    if (card && !this.dragged && !card.classList.contains("ghost")) this.go(card.dataset.path);
  }

  toggle(path) {
    const n = this.nodes.get(path);
    if (n && n.children.length > 0) { this.chosen.set(path, n.open === true); this.at = path; this.draw(); }
  }

  focus(path) {
    this.at = path;
    for (const el of this.frame.querySelectorAll("[data-path]")) {
      el.setAttribute("tabindex", el.dataset.path === path ? "0" : "-1");
      if (el.dataset.path === path) { el.focus({ preventScroll: true }); el.scrollIntoView({ block: "nearest", inline: "nearest" }); }
    }
  }

  focusFound() {
    const n = this.placed?.shown.find((x) => this.matching?.(x));
    if (n) this.focus(n.path);
  }

  keyed(e) {
    const shown = this.placed?.shown ?? [], i = shown.findIndex((n) => n.path === this.at), n = shown[i];
    if (!n || e.altKey || e.metaKey || e.ctrlKey) return;
    const to = {
      ArrowDown: () => shown[i + 1], ArrowUp: () => shown[i - 1], Home: () => shown[0], End: () => shown[shown.length - 1],
      ArrowRight: () => { if (n.children.length > 0 && !n.open) { this.toggle(n.path); return n; } return n.children[0]; },
      ArrowLeft: () => { if (n.open) { this.toggle(n.path); return n; } return n.parent; },
      Enter: () => { if (!n.ghost) this.go(n.path); return null; },
      " ": () => { this.toggle(n.path); return n; },
      "+": () => { this.scale(1.25); return n; }, "=": () => { this.scale(1.25); return n; }, "-": () => { this.scale(1 / 1.25); return n; }, 0: () => { this.zoom = 0; this.draw(); return n; },
    }[e.key];
    if (!to) return;
    e.preventDefault();
    const next = to();
    if (next) this.focus(next.path);
  }

  // drag moves the picture with the mouse; fingers scroll it anyway.
  drag() {
    let from;
    this.stage.addEventListener("pointerdown", (e) => {
      this.dragged = false;
      if (e.pointerType === "mouse" && e.button === 0) from = { x: e.clientX + this.stage.scrollLeft, y: e.clientY + this.stage.scrollTop, cx: e.clientX, cy: e.clientY };
    });
    this.stage.addEventListener("pointermove", (e) => {
      if (!from) return;
      if (Math.abs(e.clientX - from.cx) + Math.abs(e.clientY - from.cy) > 5) this.dragged = true;
      if (this.dragged) this.stage.scrollTo(from.x - e.clientX, from.y - e.clientY);
    });
    for (const name of ["pointerup", "pointerleave", "pointercancel"]) this.stage.addEventListener(name, () => { from = undefined; });
  }
}
