// What states there are, how bad each is, and the shape by which it is told apart without its colour.
//
// The order is that of pkg/agent (severity), with the states of a ref between those of a site.

export const severity = {
  witness: 0, unsubscribed: 0, delivered: 1, synced: 1, succeeded: 1, "rolled-back": 1, accepted: 2, held: 2, skipped: 2, offline: 3,
  syncing: 3, delivering: 3, running: 3, staging: 3, soaking: 3, pending: 2, waiting: 4, behind: 4, unknown: 5, drifted: 6, degraded: 7, failed: 7, conflict: 8, unreachable: 9,
};

// kind is the class by which a state is coloured.
const kinds = {
  synced: "good", delivered: "good", succeeded: "good", passed: "good", equal: "good",
  syncing: "busy", delivering: "busy", running: "busy", staging: "busy", soaking: "busy", checking: "busy", "rolling-back": "busy",
  behind: "wait", waiting: "wait", "awaiting-approval": "wait", "awaiting-window": "wait", paused: "wait",
  degraded: "bad", failed: "bad", aborted: "bad", drifted: "bad", Warning: "bad",
  conflict: "clash", unreachable: "dead",
};

export const kindOf = (state) => kinds[state] || "calm";

// shapes are drawn in a box of 16 by 16. Each is told from every other by its outline or by what is cut out of it.
const circle = "M8 1.2a6.8 6.8 0 1 0 0 13.6a6.8 6.8 0 1 0 0-13.6z";
const ring = circle + "M8 3.2a4.8 4.8 0 1 1 0 9.6a4.8 4.8 0 1 1 0-9.6z";
const square = "M2 2h12v12h-12z";
const diamond = "M8 .4l7.6 7.6l-7.6 7.6l-7.6-7.6z";
const triangle = "M8 .8l7.6 13.9h-15.2z";
const shapes = {
  good: circle + "M4.3 8.2l1.2-1.2l1.8 1.8l3.6-3.8l1.2 1.2l-4.8 5z", // a disc with a tick
  busy: ring + "M7.1 4.6h1.8v3.6h2.1l-3 3.4l-3-3.4h2.1z", // a ring with an arrow down
  wait: ring + "M7.1 4.4h1.8v3.2l2.2 2.2l-1.2 1.2l-2.8-2.8z", // a clock
  calm: ring, // an empty ring
  pause: square + "M5 5v6h2v-6zM9 5v6h2v-6z", // a box with two bars
  none: "M3 7h10v2h-10z", // a dash
  unknown: "M8 1.2a6.8 6.8 0 0 1 4.8 2l-1.4 1.4a4.8 4.8 0 0 0-3.4-1.4zM14.2 5.2a6.8 6.8 0 0 1 0 5.6l-1.8-.8a4.8 4.8 0 0 0 0-4zM12.8 12.8a6.8 6.8 0 0 1-4.8 2v-2a4.8 4.8 0 0 0 3.4-1.4zM6 14.5a6.8 6.8 0 0 1-4-3.7l1.8-.8a4.8 4.8 0 0 0 2.8 2.6zM1.2 8.6a6.8 6.8 0 0 1 2-5.4l1.4 1.4a4.8 4.8 0 0 0-1.4 4zM7.1 7h1.8v2h-1.8z", // a broken ring
  bad: triangle + "M7.1 5.6v4.2h1.8v-4.2zM7.1 11.1v1.8h1.8v-1.8z", // a triangle with a mark
  drift: diamond + "M3.8 8.9c1.4-2.6 2.9-2.6 4.4-1.3s2.3 1 3.2-.6l1 .7c-1.4 2.6-2.9 2.6-4.4 1.3s-2.3-1-3.2.6z", // a diamond with a wave
  clash: diamond + "M4.6 6.2v1.5h6.8v-1.5zM4.6 8.9v1.5h6.8v-1.5z", // a diamond with two bars
  dead: square + "M5 3.8l3 3l3-3l1.2 1.2l-3 3l3 3l-1.2 1.2l-3-3l-3 3l-1.2-1.2l3-3l-3-3z", // a box with a cross
};

const special = {
  held: "pause", paused: "pause", skipped: "none", unsubscribed: "none", unknown: "unknown", drifted: "drift", accepted: "drift", witness: "calm", offline: "unknown",
};

export const shapeOf = (state) => shapes[special[state] || kindOf(state)];

// worst of some states.
export function worst(states) {
  let at = "";
  for (const s of states) {
    if (at === "" || (severity[s] ?? 5) > (severity[at] ?? 5)) at = s;
  }
  return at || "unknown";
}
