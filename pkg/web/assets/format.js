// Numbers, times and names as people read them, in the language of the page.

import { t, language } from "./words.js";

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(n) {
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return (i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)) + "\u00a0" + units[i];
}

export const count = (n) => Number(n).toLocaleString(language() === "zh" ? "zh-CN" : "en");

// span of seconds, with at most two units.
export function span(seconds) {
  const x = Math.max(0, Math.round(seconds));
  const d = Math.floor(x / 86400), hh = Math.floor(x / 3600) % 24, m = Math.floor(x / 60) % 60, ss = x % 60;
  if (d > 0) return hh > 0 ? t("span.dh", d, hh) : t("span.d", d);
  if (hh > 0) return m > 0 ? t("span.hm", hh, m) : t("span.h", hh);
  if (m > 0) return ss > 0 ? t("span.ms", m, ss) : t("span.m", m);
  return t("span.s", ss);
}

// clock of seconds that are left, as it runs.
export function clock(seconds) {
  const x = Math.max(0, Math.ceil(seconds));
  const hh = Math.floor(x / 3600), m = Math.floor(x / 60) % 60, two = (n) => String(n).padStart(2, "0");
  return hh > 0 ? `${hh}:${two(m)}:${two(x % 60)}` : `${m}:${two(x % 60)}`;
}

export const moment = (iso) => (iso ? new Date(iso) : null);

export function stamp(iso) {
  const d = moment(iso);
  if (!d) return "";
  return d.toLocaleString(language() === "zh" ? "zh-CN" : "en-GB", { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export function timeOfDay(iso) {
  const d = moment(iso);
  if (!d) return "";
  const today = new Date().toDateString() === d.toDateString();
  const lang = language() === "zh" ? "zh-CN" : "en-GB";
  return today ? d.toLocaleTimeString(lang) : d.toLocaleString(lang, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
}

export function ago(iso, now) {
  const d = moment(iso);
  if (!d) return t("never");
  const x = (now - d.getTime()) / 1000;
  return x < 5 ? t("just-now") : t("ago", span(x));
}

// digest, short enough to compare at a glance.
export const short = (digest) => (digest ? digest.replace(/^sha256:/, "").slice(0, 12) : "");

export const nameOf = (path) => path.slice(path.lastIndexOf("/") + 1);
export const parentOf = (path) => (path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "");
