// Rollouts, and one of them: its waves on a shared axis of time, with the clocks of their soaks.

import { h, s, stateWord, swap, glyph } from "./dom.js";
import { kindOf, severity } from "./states.js";
import { clock, moment, nameOf, short, span, stamp, timeOfDay } from "./format.js";
import { t, stateName } from "./words.js";
import { facts, link, loading, refLink, section, table } from "./parts.js";

const over = new Set(["succeeded", "failed", "aborted", "rolled-back"]);
const manyGroups = 18; // from which on the groups of a wave are marks, and only those that are not done are named

export function rolloutsPage(live) {
  const el = h("div", { class: "page" });
  return {
    feeds: ["tree", "rollouts"], title: () => t("rollouts.title"), el,
    update() {
      const parts = live.get("rollouts"), trouble = live.trouble("rollouts");
      const list = [...(parts || [])].filter(([k]) => k !== "!").map(([, r]) => r).sort((a, b) => (a.started < b.started ? 1 : -1));
      swap(el, h("div", { class: "headline" }, h("h1", {}, t("rollouts.title"))),
        trouble ? h("p", { class: "callout" }, trouble.code === "FailedPrecondition" ? t("rollouts.hq") : trouble.message) : null,
        !parts ? loading() : list.length === 0 && !trouble ? h("p", { class: "calm-note" }, t("rollouts.none")) : h("ul", { class: "cards" }, list.map(item)));
    },
  };
}

const item = (r) => h("li", { class: "item" },
  h("div", { class: "item-head" }, h("a", { href: "#/rollout/" + encodeURI(r.id), class: "item-name" }, r.refs.map((x) => x.ref).join(", ")), stateWord(r.phase, stateName(r.phase))),
  h("div", { class: "waveline", "aria-hidden": "true" }, Array.from({ length: r.waveCount }, (_, i) => h("span", { class: "dot " + (i + 1 < r.waveNumber ? "past" : i + 1 === r.waveNumber && !over.has(r.phase) ? "now " + kindOf(r.phase) : i + 1 === r.waveNumber ? kindOf(r.phase) : "next") }))),
  h("p", { class: "quiet" }, [r.waveNumber > r.waveCount ? t("rollouts.over", r.waveCount) : t("rollouts.wave", r.waveNumber, r.waveCount) + (r.wave ? " (" + r.wave + ")" : ""), t("rollouts.plan", r.plan || "–"), t("rollouts.by", r.actor), timeOfDay(r.started)].join(" · ")),
  r.reason ? h("p", {}, r.reason) : null);

export function rolloutPage(live, id) {
  const el = h("div", { class: "page" }), feed = "rollout:" + id;
  return {
    feeds: ["tree", feed], title: () => t("rollout.title", id), el,
    update() {
      const parts = live.get(feed), trouble = live.trouble(feed), r = parts?.get("rollout");
      if (!r) {
        return swap(el, h("h1", {}, t("rollout.title", id)), trouble ? h("p", { class: "callout" }, trouble.code === "NotFound" ? t("rollout.none", id) : trouble.code === "FailedPrecondition" ? t("rollouts.hq") : trouble.message) : loading());
      }
      const pick = (prefix) => [...parts].filter(([k]) => k.startsWith(prefix)).sort(([a], [b]) => (a < b ? -1 : 1)).map(([, v]) => v);
      const waves = pick("w/").map((w, i) => ({ ...w, heardAt: w.heardAt, groups: pick(`g/${String(i).padStart(3, "0")}/`) }));
      swap(el, header(r), waits(r, waves), section(t("rollout.waves"), timeline(r, waves, live)),
        section(t("rollout.receipt"), receipt(pick("s/"))), section(t("rollout.history"), h("ol", { class: "steps" }, pick("t/").reverse().map((x) => h("li", {}, h("time", {}, timeOfDay(x.at)), h("span", {}, x.text), h("span", { class: "quiet" }, x.actor))))));
    },
  };
}

const header = (r) => [
  h("div", { class: "headline" }, h("h1", {}, t("rollout.title", r.id)), stateWord(r.phase, stateName(r.phase))),
  r.reason && !verbOf[r.phase] ? h("p", { class: "reason" }, r.reason) : null,
  facts([[t("rollout.moves"), r.refs.map((x) => h("div", {}, refLink(x.ref), " → ", h("code", {}, short(x.digest)), x.source !== x.ref ? h("span", { class: "quiet" }, " ", t("rollout.from", x.source)) : null))],
    [t("rollouts.started"), stamp(r.started)], [t("rollouts.ended"), r.ended ? stamp(r.ended) : null], [t("rollout.plan"), r.plan || "–"], [t("images.by"), r.actor]]),
  r.settled ? h("p", { class: "quiet" }, t("rollout.settled")) : null, r.supersededBy ? h("p", { class: "quiet" }, t("rollout.superseded", r.supersededBy)) : null,
];

// verbOf a phase in which a person is waited for.
const verbOf = { "awaiting-approval": "approve", paused: "resume" };

// waits says that a person is waited for, and how to answer.
function waits(r, waves) {
  const verb = verbOf[r.phase];
  if (!verb) return null;
  return h("div", { class: "callout" }, h("p", {}, t("rollout.needs", r.reason || stateName(r.phase))), h("code", { class: "command" }, `fanoutctl rollout ${verb} ${r.id}`));
}

function timeline(r, waves, live) {
  const start = moment(r.started)?.getTime() ?? live.now(), end = Math.max(start + 1000, moment(r.ended)?.getTime() ?? live.now());
  return [h("div", { class: "axis", "aria-hidden": "true" }, h("span", {}, timeOfDay(r.started)), h("span", {}, r.ended ? timeOfDay(r.ended) : t("rollout.now"))),
    h("ol", { class: "waves" }, waves.map((w, i) => wave(w, i + 1 === r.waveNumber && !over.has(r.phase), start, end, live)))];
}

function wave(w, current, start, end, live) {
  const done = w.groups.filter((g) => g.phase === "succeeded").length;
  return h("li", { class: "wave " + kindOf(w.phase) + (current ? " current" : "") },
    h("div", { class: "wave-head" }, glyph(w.phase, 20), h("h3", {}, w.name), h("span", { class: "state " + kindOf(w.phase) }, stateName(w.phase)), h("span", { class: "quiet" }, t("rollout.groups", done, w.groups.length)), soak(w, live)),
    bar(w, start, end, live), w.reason ? h("p", { class: "reason" }, w.reason) : null, groups(w),
    h("ul", { class: "notes" }, w.gates.map((g) => h("li", {}, stateWord(g.result, t("rollout.gate." + g.kind) + " " + t("rollout.gate." + g.when) + ": " + stateName(g.result)), g.url ? [" ", h("code", {}, g.url)] : null, g.by ? " · " + t("rollouts.by", g.by) : null, g.detail ? h("span", { class: "quiet" }, " ", g.detail) : null)),
      w.window ? h("li", {}, h("code", {}, w.window.join(", ")), " ", w.windowNext ? (moment(w.windowNext).getTime() <= live.now() ? t("rollout.window.open") : t("rollout.window.next", stamp(w.windowNext))) : t("rollout.window.never")) : null,
      h("li", { class: "quiet" }, t("rollout.limits", w.maxConcurrent, w.maxFailures, t("then." + w.onFailure), t("offline." + w.onOffline)), w.deadlineSeconds > 0 ? " · " + t("rollout.deadline", span(w.deadlineSeconds)) : null)));
}

// bar shows when a wave was open, within the time of the whole rollout.
function bar(w, start, end, live) {
  if (!w.opened) return null;
  const from = moment(w.opened).getTime(), to = w.closed ? moment(w.closed).getTime() : Math.min(end, live.now());
  const pc = (x) => (100 * Math.min(1, Math.max(0, (x - start) / (end - start)))).toFixed(2);
  return h("div", { class: "bar", title: t("rollout.opened", stamp(w.opened)) }, s("svg", { width: "100%", height: 8, "aria-hidden": "true" }, s("rect", { class: "rail", width: "100%", height: 8, rx: 4 }),
    s("rect", { class: "fill " + kindOf(w.phase), x: pc(from) + "%", width: Math.max(1, pc(to) - pc(from)).toFixed(2) + "%", height: 8, rx: 4 })));
}

// soak is a clock that runs down. The agent writes the time down now and then; between that it is counted on from when it was heard.
function soak(w, live) {
  if (w.soakSeconds <= 0) return null;
  if (w.phase !== "soaking") return h("span", { class: "quiet soak" }, w.phase === "succeeded" ? t("rollout.soak.done", span(w.soakSeconds)) : t("rollout.soak.then", span(w.soakSeconds)));
  const soaked = Math.min(w.soakSeconds, w.soakedSeconds + (Date.now() - (w.heardAt ?? Date.now())) / 1000), left = w.soakSeconds - soaked, round = 2 * Math.PI * 15;
  return h("span", { class: "soak running" }, s("svg", { viewBox: "0 0 40 40", width: 40, height: 40, "aria-hidden": "true" }, s("circle", { class: "rail", cx: 20, cy: 20, r: 15 }),
    s("circle", { class: "hand", cx: 20, cy: 20, r: 15, "stroke-dasharray": `${(round * soaked / w.soakSeconds).toFixed(1)} ${round.toFixed(1)}`, transform: "rotate(-90 20 20)" })),
  h("span", {}, h("b", { class: "clock" }, clock(left)), " ", h("span", { class: "quiet" }, t("rollout.soak.left", "", span(w.soakSeconds)).trim())));
}

function groups(w) {
  const chip = (g) => h("li", { class: "groupchip " + kindOf(g.phase) }, glyph(g.phase), link("/group/" + g.group, g.group), h("span", { class: "quiet" }, stateName(g.phase)), g.reason ? h("span", { class: "why" }, g.reason) : null);
  const sorted = [...w.groups].sort((a, b) => (severity[b.phase] ?? 5) - (severity[a.phase] ?? 5) || (a.group < b.group ? -1 : 1));
  if (sorted.length <= manyGroups) return h("ul", { class: "groupchips" }, sorted.map(chip));
  return [h("div", { class: "cells" }, sorted.map((g) => h("a", { class: "cell", href: "#/group/" + encodeURI(g.group), "aria-label": t("ref.cell", g.group, stateName(g.phase)), title: nameOf(g.group) + " · " + stateName(g.phase), "data-key": "g " + g.group }, glyph(g.phase, 18)))),
    h("ul", { class: "groupchips" }, sorted.filter((g) => g.phase === "failed" || g.phase === "offline").slice(0, manyGroups).map(chip))];
}

function receipt(sites) {
  if (sites.length === 0) return h("p", { class: "quiet" }, t("none"));
  const sorted = [...sites].sort((a, b) => (severity[b.state] ?? 5) - (severity[a.state] ?? 5) || (a.group < b.group ? -1 : 1));
  return table([t("site"), t("ref"), t("site.state"), t("ref.shows"), t("time"), t("ref.why")], sorted.slice(0, 200).map((x) => [
    [link("/site/" + x.site, x.site), " ", h("span", { class: "quiet" }, x.group)], h("span", { class: "mono" }, x.ref), stateWord(x.state, stateName(x.state)), x.digest ? h("code", {}, short(x.digest)) : "–", timeOfDay(x.time) || "–", x.reason || "–"]));
}
