// Small plots of what the polls of this page have seen; nothing is kept beyond it.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { latency } from "./dom.js";

const MOST_POINTS = 300; // ten minutes at one poll in two seconds
const histories = new Map(); // deployment's id → {at: [], name: [] …}

/** Remember what a poll has seen of all deployments; one that is gone is forgotten. */
export function remember(deployments) {
  const at = Date.now() / 1000;
  const seen = new Set();
  for (const one of deployments) {
    seen.add(one.id);
    const attempts = one.attempts ?? {};
    const ok = attempts.ready ?? 0;
    const failed = failures(attempts);
    const history = histories.get(one.id) ?? { at: [], sessions: [], ready: [], audio: [], failed: [], last: null };
    // Counters begin anew with a process: a smaller number is no negative rate.
    const since = history.last === null ? null : Math.max(0, failed - history.last);
    history.last = failed;
    for (const [name, value] of [["at", at], ["sessions", one.sessions], ["ready", one.ready_s], ["audio", one.first_audio_s], ["failed", since]]) {
      history[name].push(Number.isFinite(value) ? value : null);
      if (history[name].length > MOST_POINTS) history[name].shift();
    }
    history.ok = ok;
    histories.set(one.id, history);
  }
  for (const id of histories.keys()) if (!seen.has(id)) histories.delete(id);
}

/** Attempts that did not end well; a client that left is nobody's failure. */
export function failures(attempts) {
  let sum = 0;
  for (const [outcome, value] of Object.entries(attempts ?? {})) {
    if (!["ready", "client_gone", "client_request", "under_way"].includes(outcome) && Number.isFinite(value)) sum += value;
  }
  return sum;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const none = { at: [], sessions: [], ready: [], audio: [], failed: [] };

function options(name, width, height, full) {
  const seconds = name === "ready" || name === "audio";
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  return {
    width,
    height,
    pxAlign: 0,
    legend: { show: false },
    cursor: { show: false },
    padding: full ? [8, 8, 0, 0] : [2, 1, 2, 1],
    // Two minutes at least, so that the first points do not fill the whole width.
    scales: { x: { time: true, range: (_, low, high) => [Math.min(low ?? 0, (high ?? 1) - 120), high ?? 1] }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, seconds ? 0.01 : 1) * 1.15] } },
    axes: full
      ? [{ ...axis, size: 26, space: 60, incrs: [30, 60, 120, 300], values: (_, ticks) => ticks.map((tick) => clock.format(new Date(tick * 1000))) }, { ...axis, size: 52, space: 24, values: (_, ticks) => ticks.map((tick) => (seconds ? latency(tick) : Number.isInteger(tick) ? String(tick) : "")) }]
      : [{ show: false }, { show: false }],
    series: [{}, { stroke: colour(name === "failed" ? "--bad" : "--accent"), fill: colour(name === "failed" ? "--bad-soft" : "--accent-soft"), width: 1.5, points: { show: false }, spanGaps: false }],
  };
}

const plots = new Set();
const draw = (plot) => {
  const history = histories.get(plot.id) ?? none;
  plot.plot?.setData([history.at, history[plot.name]]);
};

function build(plot, element) {
  plot.plot?.destroy();
  const width = plot.full ? Math.max(200, element.clientWidth) : 84;
  plot.width = width;
  plot.plot = new uPlot(options(plot.name, width, plot.full ? 130 : 24, plot.full), [[], []], element);
  draw(plot);
}

/** A hook for `h`: one plot of a deployment, small or with axes. */
export function plotOf(id, name, { full = false } = {}) {
  return {
    mount(element) {
      const plot = { id, name, full, element };
      element.plot = plot;
      plots.add(plot);
      // The element has a width once it is in the document.
      requestAnimationFrame(() => plots.has(plot) && build(plot, element));
    },
    update(element) {
      if (element.plot.id !== id) {
        element.plot.id = id;
        element.plot.name = name;
      }
      draw(element.plot);
    },
    unmount(element) {
      plots.delete(element.plot);
      element.plot.plot?.destroy();
    },
  };
}

const rebuild = () => { for (const plot of plots) build(plot, plot.element); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { for (const plot of plots) if (plot.full) build(plot, plot.element); }, 150);
});
