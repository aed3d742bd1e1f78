// Groups and their deployments: all of them, and one.

import { get, post } from "./api.js";
import { decisionList } from "./decisions.js";
import { confirm, notify } from "./dialogs.js";
import { badge, count, duration, facts, h, kindOf, latency, table, words } from "./dom.js";
import { failures, plotOf } from "./plots.js";

// Above this many, a plot in each row costs more than it tells; each deployment's own page has them.
const MOST_PLOTTED = 60;

export async function load([id]) {
  const seen = await get("admin/deployments");
  if (id === undefined) return seen;
  const { decisions } = await get("admin/decisions", { deployment: id, limit: 10 });
  return { ...seen, decisions };
}

export function show(seen, [id], page) {
  if (id !== undefined) return one(seen, id, page);
  const { groups } = seen;
  const all = groups.flatMap((group) => group.deployments);
  const plotted = all.length <= MOST_PLOTTED;
  return [
    h("h1", { key: "title" }, "Deployments"),
    summary(all, seen),
    groups.length ? groups.map((group) => section(group, plotted, page)) : h("p", { class: "empty" }, "No group is configured."),
  ];
}

function summary(all, seen) {
  const sum = (name) => all.reduce((total, one) => total + (Number.isFinite(one[name]) ? one[name] : 0), 0);
  const admitting = all.filter((one) => kindOf(stateOf(one)) === "ok").length;
  const attempts = all.reduce((total, one) => total + (one.attempts?.ready ?? 0) + failures(one.attempts), 0);
  const failed = all.reduce((total, one) => total + failures(one.attempts), 0);
  return h("dl", { class: "tiles", key: "summary" },
    tile("Sessions", count(sum("sessions"))),
    tile("Taking sessions", `${admitting} of ${all.length}`, admitting === 0 && all.length ? "bad" : admitting < all.length ? "busy" : ""),
    tile("Attempts", count(attempts)),
    tile("Failed", attempts ? `${count(failed)} (${((failed / attempts) * 100).toFixed(failed && failed / attempts < 0.1 ? 1 : 0)} %)` : "0"),
    seen.fleet && tile("Fleet", `${seen.fleet.members} · ${words(seen.fleet.mode)}`, kindOf(seen.fleet.mode) === "ok" ? "" : "busy"));
}

const tile = (name, value, kind = "") => h("div", { class: kind }, h("dt", null, name), h("dd", null, value));

/** The state, or what stands in the way of a deployment that is well. */
function stateOf(one) {
  if (one.removed) return "removed";
  return one.state === "admitting" && one.obstacle ? one.obstacle : one.state;
}

function section(group, plotted, page) {
  const sessions = group.deployments.reduce((sum, one) => sum + (Number.isFinite(one.sessions) ? one.sessions : 0), 0);
  const notes = [
    `${count(sessions)} ${sessions === 1 ? "session" : "sessions"}`,
    `strategy ${words(group.strategy)}`,
    group.fallbacks?.length && `falls back to ${group.fallbacks.join(", ")}`,
    group.aliases?.length && `also called ${group.aliases.join(", ")}`,
  ].filter(Boolean);
  const columns = [
    ["State", (one) => [badge(stateOf(one)), why(one)], "state"],
    ["Deployment", (one) => [h("a", { href: `#/deployments/${encodeURIComponent(one.id)}` }, one.id), h("small", null, `${one.provider}/${one.model}`)], "name"],
    ["Sessions", sessionsOf, "number"],
    ["Attempts", (one) => attemptsOf(one), "number"],
    ["Ready", (one) => figure(one, "ready", one.ready_s, plotted), "figure"],
    ["First audio", (one) => figure(one, "audio", one.first_audio_s, plotted), "figure"],
    ["Per minute", minuteOf, "number"],
    ["Weight", (one) => [count(one.weight), one.override?.weight != null && h("small", null, "set here")], "number"],
    ["Actions", (one) => quick(one, group, page), "act"],
  ];
  return h("section", { class: "card", key: `group ${group.group}` },
    h("header", null, h("h2", null, group.group), h("p", null, notes.join(" · "))),
    table(`Deployments of ${group.group}`, columns, group.deployments, { key: (one) => one.id, kind: "deployments", empty: "This group has no deployment." }));
}

function why(one) {
  const parts = [];
  if (one.override?.state) parts.push("set here");
  if (one.reason && stateOf(one) !== "admitting") parts.push(one.reason);
  const wait = Number.isFinite(one.ejected_s) ? one.ejected_s : one.available_in_s;
  if (wait > 0 && Number.isFinite(wait)) parts.push(`${one.ejected_s ? "probed" : "back"} in ${duration(wait)}`);
  return parts.length ? h("small", null, parts.join(" · ")) : null;
}

function sessionsOf(one) {
  const most = one.max_sessions;
  const share = most ? Math.min(1, one.sessions / most) : null;
  const elsewhere = one.sessions_elsewhere ? h("small", null, `+ ${count(one.sessions_elsewhere)} elsewhere`) : null;
  return [
    h("span", null, count(one.sessions), most ? h("span", { class: "of" }, ` / ${count(most)}`) : null),
    share === null ? null : h("meter", { min: 0, max: 1, high: 0.8, optimum: 0, value: share, "aria-label": `Sessions of ${one.id} against its limit` }),
    elsewhere,
  ];
}

function attemptsOf(one) {
  const failed = failures(one.attempts);
  return [
    h("span", null, count((one.attempts?.ready ?? 0) + failed)),
    failed ? h("small", { class: "failed" }, `${count(failed)} failed`) : null,
    one.failures_in_a_row ? h("small", { class: "failed" }, `${one.failures_in_a_row} in a row`) : null,
  ];
}

function minuteOf(one) {
  const line = (used, limit, unit) => (limit ? h("small", { class: used >= limit ? "failed" : "" }, `${count(used)} / ${count(limit)} ${unit}`) : null);
  const shown = [line(one.minute_starts, one.rpm, "starts"), line(one.minute_tokens, one.tpm, "tokens")].filter(Boolean);
  return shown.length ? shown : h("small", null, one.minute_starts ? `${count(one.minute_starts)} starts` : "–");
}

const figure = (one, name, value, plotted) => [
  h("span", { class: "value" }, latency(value)),
  plotted && Number.isFinite(value) ? h("span", { class: "spark", "aria-hidden": "true", hook: plotOf(one.id, name) }) : null,
];

// --- what can be done ----------------------------------------------------------------------------

const TEXTS = {
  drain: ["Drain", "It takes no new sessions; those that run go on."],
  maint: ["Maintenance", "It takes no new sessions and is not probed; those that run go on."],
  ready: ["Make ready", "It takes sessions again, as far as its health and its limits allow."],
  null: ["As the file says", "What was set here is given up; the configuration file decides again."],
};

/** What becomes of new sessions when this one takes none and no other of its group does; nothing when another does. */
function lastOne(one, group) {
  const others = group.deployments.some((other) => other.id !== one.id && kindOf(stateOf(other)) === "ok");
  if (others || kindOf(stateOf(one)) !== "ok") return "";
  const next = group.fallbacks?.length ? `new ones go to ${group.fallbacks.join(", ")}` : "new ones will be refused";
  return ` No other deployment of ${group.group} takes sessions now: ${next}.`;
}

function setState(one, group, state, page) {
  const [name, text] = TEXTS[state];
  const danger = state === "drain" || state === "maint";
  return confirm({
    title: `${name}: ${one.id}`,
    text: `${text} ${one.sessions ? `${one.sessions === 1 ? "One session runs" : `${count(one.sessions)} sessions run`} there now.` : "No session runs there now."}${danger ? lastOne(one, group) : ""}`,
    button: name,
    danger,
    act: () => post("admin/deployments/set", { id: one.id, state }),
  }).then((done) => { if (done) { notify(`${one.id}: ${name.toLowerCase()}.`); return page.again(); } });
}

function setWeight(one, page) {
  const value = h("input", { type: "number", name: "weight", id: "weight", min: "0.001", step: "any", required: true, value: String(one.weight) });
  return confirm({
    title: `Weight: ${one.id}`,
    text: `Its share of new sessions with a strategy that looks at weights. The file says ${count(one.configured?.weight)}.`,
    button: "Set weight",
    fields: [h("label", { for: "weight" }, "Weight"), value],
    act: (data) => post("admin/deployments/set", { id: one.id, weight: Number(data.get("weight")) }),
  }).then((done) => { if (done) { notify(`${one.id}: weight set.`); return page.again(); } });
}

function resetWeight(one, page) {
  return confirm({
    title: `Weight: ${one.id}`,
    text: `The weight goes back to what the file says: ${count(one.configured?.weight)}.`,
    button: "Give up the weight set here",
    act: () => post("admin/deployments/set", { id: one.id, weight: null }),
  }).then((done) => { if (done) { notify(`${one.id}: weight as the file says.`); return page.again(); } });
}

function readmit(one, page) {
  return confirm({
    title: `Readmit: ${one.id}`,
    text: "Its ejection or cool-down ends now, and it takes sessions again. When it is still unwell it will be ejected again.",
    button: "Readmit",
    act: () => post("admin/deployments/readmit", { id: one.id }),
  }).then((done) => { if (done) { notify(`${one.id}: readmitted.`); return page.again(); } });
}

const effective = (one) => one.override?.state ?? one.configured?.state;

function quick(one, group, page) {
  if (one.removed || one.configured?.state === "misconfigured") return null;
  const next = effective(one) === "ready" ? "drain" : "ready";
  return h("button", { "aria-label": `${TEXTS[next][0]} ${one.id}`, onclick: () => setState(one, group, next, page) }, TEXTS[next][0]);
}

function one(seen, id, page) {
  const group = seen?.groups.find((candidate) => candidate.deployments.some((found) => found.id === id));
  const found = group?.deployments.find((candidate) => candidate.id === id);
  const back = h("p", { class: "crumbs", key: "back" }, h("a", { href: "#/deployments" }, "All deployments"));
  if (!found) return [back, h("h1", { key: "title" }, id), h("p", { class: "empty" }, "There is no such deployment. It may have been taken out of the file.")];
  const state = stateOf(found);
  const button = (text, act, props) => h("button", { onclick: act, ...props }, text);
  const states = ["ready", "drain", "maint"].filter((name) => name !== effective(found)).map((name) => button(TEXTS[name][0], () => setState(found, group, name, page), { key: name }));
  const fixed = found.removed || found.configured?.state === "misconfigured";
  const outcomes = Object.entries(found.attempts ?? {}).sort(([, left], [, right]) => right - left);
  const plot = (name, title) => h("figure", { key: name }, h("figcaption", null, title), h("div", { class: "plot", role: "img", "aria-label": `${title} of ${id} since this page was opened`, hook: plotOf(id, name, { full: true }) }));
  return [
    back,
    h("h1", { key: "title" }, id, " ", badge(state)),
    h("section", { class: "card", key: "state", "aria-label": "State and actions" },
      h("div", { class: "buttons" },
        fixed ? null : states,
        fixed || found.override?.state == null ? null : button(TEXTS.null[0], () => setState(found, group, null, page), { key: "file" }),
        fixed ? null : button("Weight…", () => setWeight(found, page), { key: "weight" }),
        found.override?.weight == null ? null : button("Weight as the file says", () => resetWeight(found, page), { key: "unweight" }),
        ["ejected", "probing", "cooling_down"].includes(found.state) ? button("Readmit", () => readmit(found, page), { key: "readmit" }) : null),
      facts(
        ["Group", group.group],
        ["Upstream", `${found.provider}/${found.model}`],
        ["State", [words(state), found.override?.state ? " (set here)" : ""]],
        found.reason && ["Reason", found.reason],
        Number.isFinite(found.ejected_s) && ["Probed in", duration(found.ejected_s)],
        ["In the file", words(found.configured?.state ?? "–")],
        ["Sessions", [count(found.sessions), found.max_sessions ? ` of ${count(found.max_sessions)}` : ""]],
        found.sessions_elsewhere != null && ["Elsewhere", count(found.sessions_elsewhere)],
        ["Started", count(found.started)],
        ["Failures in a row", count(found.failures_in_a_row)],
        ["Ready in", latency(found.ready_s)],
        ["First audio in", latency(found.first_audio_s)],
        ["Starts a minute", [count(found.minute_starts), found.rpm ? ` of ${count(found.rpm)}` : ""]],
        ["Tokens a minute", [count(found.minute_tokens), found.tpm ? ` of ${count(found.tpm)}` : ""]],
        ["Order", count(found.order)],
        ["Weight", [count(found.weight), found.configured?.weight !== found.weight ? ` (file: ${count(found.configured?.weight)})` : ""]])),
    h("section", { class: "card plots", key: "plots", "aria-label": "Plots" }, plot("sessions", "Sessions"), plot("ready", "Time to ready"), plot("audio", "Time to first audio"), plot("failed", "Failed attempts per poll")),
    h("section", { class: "card", key: "outcomes" }, h("h2", null, "Attempts by outcome"),
      table("Attempts by outcome", [["Outcome", ([name]) => words(name)], ["Attempts", ([, value]) => count(value), "number"]], outcomes, { key: ([name]) => name, empty: "It has not been dialled yet." })),
    h("section", { class: "card", key: "decisions" }, h("h2", null, "Lately decided"), decisionList(seen.decisions ?? [])),
  ];
}
