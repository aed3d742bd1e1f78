// A page as a function of what is known: `h` describes elements, `render` changes the document to match, and keeps what need not
// change, so that focus, selection and scrolling survive each poll. Text goes in as text: there is no way to markup from here.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "circle", "rect"]);
// What the reader of the page changes himself; it is written when the wanted value changes, not at each poll.
const OWN = new Set(["value", "checked", "open"]);
const made = Symbol("made by h");

/** Describe an element. `props`: attributes, on… handlers, `key`, `hook` ({mount, update, unmount}, each given the element). */
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children: children.flat(Infinity).filter((child) => child != null && child !== false && child !== "") };
}

/** Make the children of `parent` what is described. */
export function render(parent, ...described) {
  patch(parent, h("", null, ...described).children);
}

function patch(parent, wanted) {
  const keyed = new Map();
  const others = [];
  for (const node of parent.childNodes) {
    const key = node[made]?.props.key;
    if (key === undefined) others.push(node);
    else keyed.set(key, node);
  }
  let at = parent.firstChild;
  for (const child of wanted) {
    const node = reuse(child, keyed, others) ?? create(child);
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
    update(node, child);
  }
  for (const node of [...others, ...keyed.values()]) remove(node);
}

function reuse(child, keyed, others) {
  if (typeof child === "object" && child.props.key !== undefined) {
    const node = keyed.get(child.props.key);
    if (node?.[made].tag !== child.tag) return null;
    keyed.delete(child.props.key);
    return node;
  }
  const fits = typeof child === "object" ? (node) => node[made]?.tag === child.tag : (node) => node.nodeType === Node.TEXT_NODE;
  const index = others.findIndex(fits);
  return index < 0 ? null : others.splice(index, 1)[0];
}

function create(child) {
  if (typeof child !== "object") return document.createTextNode("");
  return SVG_TAGS.has(child.tag) ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
}

function update(node, child) {
  if (typeof child !== "object") {
    const text = String(child);
    if (node.data !== text) node.data = text;
    return;
  }
  const before = node[made];
  for (const name of Object.keys(before?.props ?? {})) if (!(name in child.props)) set(node, name, null);
  for (const [name, value] of Object.entries(child.props)) if (before?.props[name] !== value) set(node, name, value);
  node[made] = child;
  // What a hook fills is its own business.
  if (!child.props.hook) patch(node, child.children);
  else if (before) child.props.hook.update?.(node);
  else child.props.hook.mount(node);
}

function set(node, name, value) {
  if (name === "key" || name === "hook") return;
  if (name.startsWith("on")) node[name] = value;
  else if (name === "value" && node === document.activeElement) return; // it is being written
  else if (OWN.has(name)) node[name] = value ?? (name === "value" ? "" : false);
  else if (value == null || value === false) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : String(value));
}

function remove(node) {
  for (const inner of [node, ...(node.querySelectorAll?.("*") ?? [])]) inner[made]?.props.hook?.unmount?.(inner);
  node.remove();
}

// --- figures -------------------------------------------------------------------------------------

const number = new Intl.NumberFormat("en");

/** A count, or a dash for what is not known. */
export const count = (value) => (Number.isFinite(value) ? number.format(value) : "–");

/** Seconds of a latency. */
export function latency(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 0.9995 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 9.995 ? 2 : 1)} s`;
}

/** Seconds of something that lasts. */
export function duration(value) {
  if (!Number.isFinite(value)) return "–";
  const all = Math.max(0, Math.round(value));
  const [hours, minutes, seconds] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  if (hours) return `${hours} h ${String(minutes).padStart(2, "0")} min`;
  return minutes ? `${minutes} min ${String(seconds).padStart(2, "0")} s` : `${seconds} s`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  for (; size >= 1024 && unit < units.length - 1; unit += 1) size /= 1024;
  return `${unit && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

const clockTime = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayTime = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** A moment in epoch seconds: the time today, else with its day. */
export function moment(value) {
  if (!Number.isFinite(value)) return "–";
  const date = new Date(value * 1000);
  return h("time", { datetime: date.toISOString() }, (date.toDateString() === new Date().toDateString() ? clockTime : dayTime).format(date));
}

// --- pieces --------------------------------------------------------------------------------------

const SHAPES = {
  ok: ["circle", { cx: 6, cy: 6, r: 4.5 }],
  busy: ["path", { d: "M6 1.2 11.2 10.6H.8z" }],
  bad: ["path", { d: "M3.7.8h4.6l2.9 2.9v4.6l-2.9 2.9H3.7L.8 8.3V3.7z" }],
  off: ["path", { d: "M2 2h3v8H2zM7 2h3v8H7z" }],
};
const KINDS = {
  admitting: "ok", ready: "ok", ok: "ok", fresh: "ok", turn: "ok", idle: "ok", waiting: "busy",
  probing: "busy", cooling_down: "busy", full: "busy", rate_limited: "busy", limit_unknown: "busy", ageing: "busy", local: "busy",
  draining: "off", drain: "off", maint: "off", removed: "off", ended: "off",
  ejected: "bad", misconfigured: "bad", failed: "bad", lost: "bad",
};

export const kindOf = (state) => KINDS[state] ?? "busy";
export const words = (name) => String(name).replaceAll("_", " ");

/** A state as shape, colour and word. */
export function badge(state, text) {
  const kind = kindOf(state);
  const [tag, props] = SHAPES[kind];
  return h("span", { class: `badge ${kind}` }, h("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, h(tag, props)), text ?? words(state));
}

/** Pairs of a name and a value. */
export const facts = (...pairs) => h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value, title]) => h("div", { title }, h("dt", null, name), h("dd", null, value))));

/** A table that becomes a list of cards on a narrow screen. `columns`: [heading, row → cell, class]. */
export function table(label, columns, rows, { key, empty = "None.", kind }) {
  if (!rows.length) return h("p", { class: "empty", key: `${label} empty` }, empty);
  const heads = columns.map(([heading, , kind]) => h("th", { role: "columnheader", scope: "col", class: kind }, heading));
  const cells = (item) => columns.map(([heading, cell, kind]) => h("td", { role: "cell", class: kind, "data-name": heading }, cell(item)));
  return h("table", { role: "table", "aria-label": label, key: label, class: kind },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)),
    h("tbody", { role: "rowgroup" }, rows.map((item) => h("tr", { role: "row", key: key(item) }, cells(item)))));
}
