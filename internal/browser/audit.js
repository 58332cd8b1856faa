// Looks at the page as it stands, and returns a list of what is wrong.
(() => {
  const wrong = [];
  const say = (el) => (el.tagName.toLowerCase() + (el.id ? "#" + el.id : "") + (el.getAttribute("class") ? "." + el.getAttribute("class").trim().replace(/\s+/g, ".") : "") + " " + JSON.stringify((el.textContent || "").trim().slice(0, 40)));

  // Colours are drawn on a canvas, so that whatever CSS writes is read as red, green, blue and how opaque.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (css) => {
    if (!known.has(css)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = "rgba(0,0,0,0)";
      canvas.fillStyle = css;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(css, [r, g, b, a / 255]);
    }
    return known.get(css);
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const luminance = ([r, g, b]) => {
    const f = (x) => ((x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const contrast = (x, y) => {
    const [a, b] = [luminance(x), luminance(y)].sort((p, q) => q - p);
    return (a + 0.05) / (b + 0.05);
  };

  // ground is what a text stands on: the boxes drawn behind it in a picture, and the backgrounds of what it is in.
  const ground = (el) => {
    const layers = [];
    const svgText = el instanceof SVGElement;
    for (let x = el; x; x = x.parentElement) {
      const cs = getComputedStyle(x);
      if (svgText && x instanceof SVGElement && x.tagName !== "svg") {
        const box = [...(x.parentElement?.children || [])].find((c) => c.tagName === "rect" && !c.classList.contains("edge") && c !== el);
        if (box && getComputedStyle(box).fill !== "none") layers.push(rgba(getComputedStyle(box).fill));
      } else {
        layers.push(rgba(cs.backgroundColor));
      }
    }
    layers.push(rgba(getComputedStyle(document.documentElement).backgroundColor), [255, 255, 255, 1]);
    const solid = layers.findIndex((l) => l[3] === 1);
    let c = layers[solid];
    for (let i = solid - 1; i >= 0; i--) c = over(layers[i], c);
    return c;
  };
  const visible = (el) => el.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && el.getClientRects().length > 0 && el.getBoundingClientRect().width > 1;

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const el = n.parentElement;
    if (!n.textContent.trim() || seen.has(el) || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(el.tagName) || !visible(el) || el.closest(".dim")) continue;
    seen.add(el);
    const cs = getComputedStyle(el);
    const c = contrast(over(rgba(el instanceof SVGElement ? cs.fill : cs.color), ground(el)), ground(el));
    if (c < 4.5) wrong.push(`contrast ${c.toFixed(2)}: ${say(el)}`);
    if (parseFloat(cs.fontSize) < 12) wrong.push(`letters of ${cs.fontSize}: ${say(el)}`);
  }
  for (const el of document.querySelectorAll("svg .glyph, svg.glyph")) {
    if (!visible(el) || el.closest(".dim")) continue;
    const c = contrast(rgba(getComputedStyle(el).color), ground(el instanceof SVGSVGElement ? el.parentElement : el));
    if (c < 3) wrong.push(`contrast of a shape ${c.toFixed(2)}: ${el.getAttribute("class")}`);
  }

  const name = (el) => (el.getAttribute("aria-label") || (el.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.textContent || "").join(" ") ||
    [...(el.labels || [])].map((l) => l.textContent).join(" ") || el.textContent || "").trim();
  for (const el of document.querySelectorAll("a[href], button, input, select, textarea, [role=treeitem], [role=tree], [role=group], [tabindex='0']")) {
    if (visible(el) && !name(el)) wrong.push(`no name: ${say(el)}`);
  }
  for (const el of document.querySelectorAll("svg, img")) {
    if (el.getAttribute("aria-hidden") !== "true" && !name(el) && !el.getAttribute("alt")) wrong.push(`a picture without a description: ${say(el)}`);
  }
  for (const el of document.querySelectorAll("[role=tree]")) {
    if (el.querySelectorAll("[role=treeitem][tabindex='0']").length !== 1) wrong.push("not one group of the picture can be reached with the Tab key");
  }
  const ids = [...document.querySelectorAll("[id]")].map((el) => el.id);
  for (const id of new Set(ids)) if (ids.filter((x) => x === id).length > 1) wrong.push(`two elements are called ${id}`);
  if (!document.documentElement.lang) wrong.push("the language is not said");
  if (!document.title.trim()) wrong.push("the page has no title");
  if (document.querySelectorAll("main").length !== 1 || document.querySelectorAll("h1").length !== 1) wrong.push(`${document.querySelectorAll("main").length} main parts, ${document.querySelectorAll("h1").length} headings`);
  for (const el of document.querySelectorAll("th")) if (!el.getAttribute("scope")) wrong.push(`a heading of a table that says not of what: ${say(el)}`);
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth + 1) wrong.push(`the page is ${wide} px wide on a screen of ${innerWidth}`);
  if (innerWidth < 600) {
    for (const el of document.querySelectorAll("button, nav a, .cell, input")) {
      const r = el.getBoundingClientRect();
      if (visible(el) && (r.width < 18 || r.height < 18)) wrong.push(`too small for a finger (${Math.round(r.width)} by ${Math.round(r.height)}): ${say(el)}`);
    }
  }
  return wrong.slice(0, 40);
})()
