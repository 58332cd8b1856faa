// Making elements. Text goes in as text: nothing here, nor anywhere on the page, reads HTML.

import { kindOf, shapeOf } from "./states.js";

const svgSpace = "http://www.w3.org/2000/svg";

function fill(el, attrs, children) {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else el.setAttribute(name, value === true ? "" : String(value));
  }
  add(el, children);
  return el;
}

function add(el, children) {
  for (const c of children) {
    if (Array.isArray(c)) add(el, c);
    else if (c !== undefined && c !== null && c !== false && c !== "") el.append(c);
  }
}

// h makes an HTML element, s one of a picture.
export const h = (name, attrs, ...children) => fill(document.createElement(name), attrs, children);
export const s = (name, attrs, ...children) => fill(document.createElementNS(svgSpace, name), attrs, children);

// glyph is the shape of a state, in its colour. It says nothing by itself: the word stands beside it, or on what holds it.
export const glyph = (state, size = 16) => s("svg", { class: "glyph " + kindOf(state), viewBox: "0 0 16 16", width: size, height: size, "aria-hidden": "true", focusable: "false" },
  s("path", { d: shapeOf(state), "fill-rule": "evenodd" }));

// mark is the same within a picture.
export const mark = (state, x, y, size) => s("g", { class: "glyph " + kindOf(state), transform: `translate(${x} ${y}) scale(${size / 16})` },
  s("path", { d: shapeOf(state), "fill-rule": "evenodd" }));

// state is a shape and its word.
export const stateWord = (state, word) => h("span", { class: "state " + kindOf(state) }, glyph(state), h("span", {}, word));

// swap puts children in place of those that an element has, unless they would look the same. What has the focus keeps it, by its data-key.
export function swap(el, ...children) {
  const next = h("div", {}, ...children);
  const had = document.activeElement && el.contains(document.activeElement) ? document.activeElement.getAttribute("data-key") : null;
  if (next.isEqualNode(el.swapped || null)) return;
  el.swapped = next.cloneNode(true);
  el.replaceChildren(...next.childNodes);
  if (had) {
    for (const x of el.querySelectorAll("[data-key]")) {
      if (x.getAttribute("data-key") === had) { x.focus({ preventScroll: true }); break; }
    }
  }
}
