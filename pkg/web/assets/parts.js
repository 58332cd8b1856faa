// Pieces that several pages are made of.

import { h } from "./dom.js";
import { t } from "./words.js";

export const link = (to, ...text) => h("a", { href: "#" + encodeURI(to) }, text);
export const refLink = (ref) => h("a", { href: "#/ref/" + encodeURI(ref), class: "mono" }, ref);
export const whyLink = (site, ref) => h("a", { href: "#/why/" + encodeURI(site + "/" + ref), class: "more", "data-key": "why " + site + " " + ref }, t("why.link.label"));
export const loading = () => h("p", { class: "quiet", role: "status" }, t("loading"));
export const section = (title, ...children) => h("section", {}, h("h2", {}, title), children);

// facts are names and values; a value that is null is left out.
export const facts = (list) => h("dl", { class: "facts" }, list.filter(([, v]) => v !== null && v !== undefined && v !== "" && !(Array.isArray(v) && v.length === 0)).map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, v))));

// table shows rows; on a narrow screen each row is a card, and each cell names its column.
export const table = (heads, rows, cls = "") => h("div", { class: "table-wrap" }, h("table", { class: cls },
  h("thead", {}, h("tr", {}, heads.map((x) => h("th", { scope: "col" }, x)))),
  h("tbody", {}, rows.map((r) => h("tr", {}, r.map((c, i) => h("td", { "data-label": heads[i], class: c === "–" ? "empty" : undefined }, h("div", {}, c))))))));
