// Why a ref is not at a site, or how it came there: the answer, what to do, and the way from headquarters, group by group.

import { h, stateWord, swap, glyph } from "./dom.js";
import { ago, bytes, count, short, stamp, timeOfDay } from "./format.js";
import { causeWords } from "./causes.js";
import { t, stateName } from "./words.js";
import { link, loading, refLink, section, whyLink } from "./parts.js";

const justAsked = 5000; // ms in which nothing has to come of a blob that was asked for

export function whyPage(live, site, ref) {
  const feed = "why:" + site + " " + ref, head = h("div"), way = h("div");
  return {
    feeds: ["tree", feed], title: () => t("why.title", ref, site), el: h("div", { class: "page" }, head, way),
    update() {
      const doc = live.get(feed)?.get("why"), trouble = live.trouble(feed);
      const title = h("div", { class: "headline" }, h("h1", {}, refLink(ref), " ", h("span", { class: "quiet" }, "→"), " ", link("/site/" + site, site)), doc ? stateWord(doc.state, stateName(doc.state)) : null);
      const told = trouble ? h("p", { class: "callout" }, trouble.message) : null;
      if (!doc) { swap(way); return swap(head, title, told || loading()); }
      const [cause, mend] = causeWords(doc.cause) || [];
      swap(head, title, told, cause ? h("p", { class: "answer" }, cause) : null, h("p", { class: cause ? "reason quiet" : "answer" }, doc.answer), doing(mend, doc.mend),
        doc.digest ? h("p", { class: "sum" }, h("code", { class: "digest" }, doc.digest), " ", h("span", { class: "quiet" }, t("ref.revision", count(doc.revision)))) : null,
        doc.notes.map((n) => h("p", { class: "quiet" }, n)));
      swap(way, section(t("why.way"), h("ol", { class: "hops" }, doc.hops.map((x) => h("li", {}, h("div", { class: "hop" },
        stateWord(x.state, stateName(x.state)), h("b", {}, link("/group/" + x.group, x.group)), x.site ? link("/site/" + x.site, x.site) : null, h("span", { class: "quiet" }, x.revision < x.want ? t("why.behind", count(x.revision), count(x.want)) : t("ref.revision", count(x.revision)))),
      lines(x, live.now()).map((l) => h("p", {}, l)))))));
    },
  };
}

// doing says what a person does: in the language of the page, and in the agent's words where these are others.
export const doing = (own, agents) => (own || agents ? h("p", { class: "mend" }, h("b", {}, t("ref.mend", own || agents)), own && agents ? h("span", { class: "quiet" }, " ", agents) : null) : null);

// because is what is said of a failure: the same.
export function because(x) {
  const [cause, mend] = causeWords(x.cause) || [];
  return [cause ? h("p", {}, cause) : null, x.reason ? h("span", { class: cause ? "quiet" : undefined }, x.reason) : cause ? null : "–", doing(mend, x.mend)];
}

// reasonCell is that in a table, with the link to the whole way.
export const reasonCell = (x, site, ref) => [because(x), " ", whyLink(site, ref)];

// waiting are the causes of which the summary says what the reason says, in other words.
const waiting = ["held-for-promotion", "held-by-wave"];

// saysAway says of a text that it has nothing but what is said already of a hop that does not answer.
const saysAway = (x, text) => x.away && (text === "the site is unreachable" || text === "the site was not heard of yet" || text.endsWith(x.away));

function lines(x, now) {
  const out = [], group = [];
  if (x.root) group.push(t("why.root", x.root));
  if (x.carrier && x.carrier !== x.root) group.push(t("why.carrier", x.carrier));
  if (x.detachedSince) group.push(t("why.detached", stamp(x.detachedSince)));
  else if (x.parent) group.push(t("why.parent", x.parent));
  if (!x.live && (x.lastContact || !x.away)) group.push(t("why.reported", ago(x.lastContact, now)));
  if (group.length > 0) out.push(h("span", { class: "quiet" }, group.join(" · ")));
  if (x.link) out.push(t("why.link", x.link));
  if (x.away) out.push(t("why.away", x.away));
  if (x.receipt) out.push([glyph("delivered", 14), " ", t("why.receipt", stamp(x.receipt.at), bytes(x.receipt.bytes), x.receipt.sources.join(", ") || t("why.here"))]);
  const [cause] = causeWords(x.cause) || [];
  if (cause) out.push(cause);
  if (x.summary && x.state !== "delivered" && !saysAway(x, x.summary)) out.push(cause ? h("span", { class: "quiet" }, x.summary) : x.summary);
  if (x.reason && !x.summary.includes(x.reason) && !waiting.includes(x.cause) && !saysAway(x, x.reason)) out.push(x.reason);
  if (x.attempts > 0) out.push([t("ref.attempts", x.attempts), x.nextAttempt ? " · " + t("ref.next") + " " + timeOfDay(x.nextAttempt) : ""].join(""));
  if (x.blob) out.push([h("code", {}, short(x.blob)), " ", t("why.blob", bytes(x.bytesDone), bytes(x.bytesTotal), x.source || "–"), " · ", x.rate > 0 ? t("rate", bytes(x.rate)) : t(x.blobSince && now - Date.parse(x.blobSince) < justAsked ? "why.asked" : "why.nothing")]);
  if (x.bytesLeft > 0) out.push(t("left", bytes(x.bytesLeft)));
  return out;
}
