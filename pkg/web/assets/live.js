// What the agent tells: one stream of server-sent events with the feeds that the page needs now. What was heard stays when the stream breaks; the page says how old it is.

const silence = 15000; // ms without a word after which the stream counts as broken; the agent speaks every 5 s

export class Live {
  // changed is called after something was heard; it may be called often.
  constructor(changed) {
    this.changed = changed;
    this.feeds = new Map(); // name → {at, parts: Map, since}
    this.names = [];
    this.heard = 0; // when something was heard last, by this machine's clock
    this.offset = 0; // of the agent's clock
    this.wait = 500;
    this.updates = 0;
    setInterval(() => this.check(), 1000);
    document.addEventListener("visibilitychange", () => this.visible());
  }

  // now by the agent's clock, in ms.
  now() { return Date.now() + this.offset; }

  connected() { return this.source !== undefined && this.heard > 0 && Date.now() - this.heard < silence; }

  // get returns the parts of a feed; undefined: nothing was heard of it yet.
  get(name) { return this.feeds.get(name)?.parts; }

  // trouble says why a feed is not current; undefined: it is.
  trouble(name) { return this.get(name)?.get("!"); }

  // watch these feeds and no others. Those that were watched are gone on with where they were.
  watch(names) {
    if (this.source && names.length === this.names.length && names.every((n, i) => n === this.names[i])) return;
    this.names = names;
    for (const name of this.feeds.keys()) {
      if (!names.includes(name)) this.feeds.delete(name);
    }
    this.open();
  }

  open() {
    clearTimeout(this.again);
    this.source?.close();
    const query = new URLSearchParams();
    for (const name of this.names) {
      const at = this.feeds.get(name)?.at;
      query.append("feed", at ? name + "@" + at : name);
    }
    const source = new EventSource("/api/v1/watch?" + query);
    this.source = source;
    source.addEventListener("tick", (e) => {
      this.offset = Date.parse(JSON.parse(e.data).now) - Date.now();
      this.hear();
    });
    source.addEventListener("part", (e) => {
      this.apply(JSON.parse(e.data));
      this.hear();
    });
    source.addEventListener("error", () => this.broken());
  }

  hear() {
    this.heard = Date.now();
    this.wait = 500;
    this.changed();
  }

  apply(m) {
    let f = this.feeds.get(m.feed);
    if (!this.names.includes(m.feed)) return;
    if (!f || m.whole) {
      f = { parts: new Map() };
      this.feeds.set(m.feed, f);
    }
    f.at = m.at;
    this.updates++;
    for (const key of m.gone || []) f.parts.delete(key);
    const heardAt = Date.now();
    for (const [key, value] of Object.entries(m.set)) {
      Object.defineProperty(value, "heardAt", { value: heardAt });
      f.parts.set(key, value);
    }
  }

  broken() {
    this.source?.close();
    this.source = undefined;
    this.changed();
    clearTimeout(this.again);
    if (document.hidden) return;
    this.again = setTimeout(() => this.open(), this.wait);
    this.wait = Math.min(this.wait * 2, 8000);
  }

  check() {
    if (this.source && this.heard > 0 && Date.now() - this.heard > silence) this.broken();
    this.changed();
  }

  // A page in the background holds no stream after half a minute: a browser has only six for a host.
  visible() {
    clearTimeout(this.rest);
    if (document.hidden) {
      this.rest = setTimeout(() => { this.source?.close(); this.source = undefined; clearTimeout(this.again); }, 30000);
    } else if (!this.source && this.names.length > 0) {
      this.open();
    }
  }
}

// ask for a document. A refusal is thrown with its code and message.
export async function ask(path) {
  const r = await fetch("/api/v1/" + path, { headers: { Accept: "application/json" } });
  const doc = await r.json();
  if (!r.ok) throw Object.assign(new Error(doc.message), { code: doc.code });
  return doc;
}
