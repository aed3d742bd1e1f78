// Running sessions: all of them, and one with its attempts and decisions.

import { get, post } from "./api.js";
import { decisionList } from "./decisions.js";
import { confirm, notify } from "./dialogs.js";
import { badge, bytes, count, duration, facts, h, latency, moment, table, words } from "./dom.js";

const LIMIT = 200;
const filter = { search: "", group: "" };
let typing;

export async function load([id]) {
  if (id !== undefined) return get(`admin/sessions/${encodeURIComponent(id)}`);
  const [seen, { groups }] = await Promise.all([get("admin/sessions", { ...filter, limit: LIMIT }), get("admin/deployments")]);
  return { ...seen, groups: groups.map((group) => group.group) };
}

export function show(seen, [id], page) {
  if (id !== undefined) return one(seen, id, page);
  const search = (event) => {
    filter.search = event.target.value.trim();
    clearTimeout(typing);
    typing = setTimeout(() => page.again(), 200);
  };
  const choose = (event) => {
    filter.group = event.target.value;
    page.again();
  };
  const columns = [
    ["Phase", (session) => badge(session.phase)],
    ["Session", (session) => h("a", { href: `#/sessions/${encodeURIComponent(session.session)}` }, session.session), "name id"],
    ["Group", (session) => session.group],
    ["Deployment", (session) => session.deployment === null ? "–" : h("a", { href: `#/deployments/${encodeURIComponent(session.deployment)}` }, session.deployment)],
    ["Client", (session) => [session.client || "–", h("small", null, session.principal)]],
    ["Age", (session) => duration(session.seconds), "number"],
    ["Turns", (session) => count(session.turns), "number"],
    ["Attempts", (session) => count(session.attempts), "number"],
    ["Ready", (session) => latency(session.ready_s), "number"],
    ["First audio", (session) => latency(session.first_audio_s), "number"],
    ["Actions", (session) => h("button", { "aria-label": `End session ${session.session}`, onclick: () => end(session.session, page) }, "End"), "act"],
  ];
  const { total, sessions } = seen;
  return [
    h("h1", { key: "title" }, "Sessions"),
    h("form", { class: "filters", key: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      h("label", null, "Search ", h("input", { type: "search", placeholder: "id, client, key, deployment", oninput: search, value: filter.search })),
      h("label", null, "Group ", h("select", { onchange: choose }, h("option", { value: "" }, "all"), seen.groups.map((name) => h("option", { key: name, value: name, selected: name === filter.group }, name)))),
      h("p", { role: "status" }, total > sessions.length ? `${count(sessions.length)} newest of ${count(total)}` : `${count(total)} ${total === 1 ? "session" : "sessions"}`)),
    h("section", { class: "card", key: "sessions" },
      table("Running sessions", columns, sessions, { key: (session) => session.session, empty: filter.search || filter.group ? "No running session fits." : "No session runs." })),
  ];
}

function end(session, page) {
  return confirm({
    title: "End this session",
    text: `${session} is told by an error event, and closed. Its caller hears the call end.`,
    button: "End session",
    danger: true,
    fields: [
      h("label", { for: "code" }, "Close code"),
      h("input", { id: "code", name: "code", type: "number", min: "1000", max: "4999", required: true, value: "1001" }),
      h("label", { for: "reason" }, "Reason, for the client (optional)"),
      h("input", { id: "reason", name: "reason", maxlength: "100" }),
    ],
    act: (data) => post(`admin/sessions/${encodeURIComponent(session)}/end`, { code: Number(data.get("code")), reason: String(data.get("reason")) }),
  }).then((done) => { if (done) { notify(`${session} is ended.`); return page.again(); } });
}

function one(session, id, page) {
  const back = h("p", { class: "crumbs", key: "back" }, h("a", { href: "#/sessions" }, "All sessions"));
  if (session === null) return [back, h("h1", { key: "title", class: "id" }, id), h("p", { class: "empty" }, "There is no such session: it has ended some time ago, or never was.")];
  const ended = session.ended ?? null;
  const usage = Object.entries(session.usage ?? {}).filter(([, value]) => value);
  const attempts = Array.isArray(session.attempts) ? session.attempts : [];
  const columns = [
    ["Deployment", (attempt) => h("a", { href: `#/deployments/${encodeURIComponent(attempt.deployment)}` }, attempt.deployment), "name"],
    ["Outcome", (attempt) => [badge({ ready: "ready", under_way: "waiting" }[attempt.outcome] ?? "failed", words(attempt.outcome)), attempt.raced ? h("small", null, "another was ready first") : null]],
    ["Took", (attempt) => latency(attempt.seconds), "number"],
    ["Seen", (attempt) => attempt.detail || "–", "wide"],
  ];
  return [
    back,
    h("h1", { key: "title", class: "id" }, id, " ", badge(ended ? "ended" : session.phase)),
    h("section", { class: "card", key: "facts", "aria-label": "Session" },
      ended ? null : h("div", { class: "buttons" }, h("button", { class: "danger", onclick: () => end(id, page) }, "End session…")),
      facts(
        ["Group", session.group],
        ["Deployment", session.deployment ? h("a", { href: `#/deployments/${encodeURIComponent(session.deployment)}` }, session.deployment) : "–"],
        ["Client", session.client || "–"],
        ["Key", session.principal || "–"],
        ["Began", moment(session.began_at)],
        [ended ? "Lasted" : "Age", duration(session.seconds)],
        ["Ready in", latency(session.ready_s)],
        ["First audio in", latency(session.first_audio_s)],
        ["Turns", count(session.turns)],
        ["From the client", `${count(session.client_events)} events, ${bytes(session.client_bytes)}`],
        ["From the upstream", `${count(session.upstream_events)} events, ${bytes(session.upstream_bytes)}`],
        Number.isFinite(session.worker) && ["Worker", count(session.worker)],
        ["Generation", count(session.generation)],
        usage.map(([name, value]) => `${words(name)} ${count(value)}`).length && ["Tokens", usage.map(([name, value]) => `${words(name)} ${count(value)}`).join(", ")],
        ended && ["Ended by", `${words(ended.who ?? "–")}: ${words(ended.cause ?? "–")}`],
        ended?.passed_over?.length && ["Not dialled", ended.passed_over.map((one) => `${one.id} (${words(one.reason)})`).join(", ")],
        ended?.upstream_reason && ["Upstream's reason", ended.upstream_reason],
        ended && ended.status !== 101 && ["Answered", `HTTP ${ended.status}`],
        ended && ["Close codes", `client ${ended.client_code ?? "–"}, upstream ${ended.upstream_code ?? "–"}`])),
    h("section", { class: "card", key: "attempts" }, h("h2", null, "Attempts"), table("Attempts", columns, attempts.map((attempt, index) => ({ ...attempt, index })), { key: (attempt) => attempt.index, empty: "None has ended yet." })),
    h("section", { class: "card", key: "decisions" }, h("h2", null, "Why it went there"), decisionList(session.decisions ?? [])),
  ];
}
