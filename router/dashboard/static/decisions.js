// Why sessions went where they went.

import { get } from "./api.js";
import { count, h, moment, table, words } from "./dom.js";

const filter = { group: "", session: "" };
let typing;

export async function load() {
  const [seen, { groups }] = await Promise.all([get("admin/decisions", { ...filter, limit: 100 }), get("admin/deployments")]);
  return { ...seen, groups: groups.map((group) => group.group) };
}

export function show(seen, path, page) {
  const choose = (event) => {
    filter.group = event.target.value;
    page.again();
  };
  const search = (event) => {
    filter.session = event.target.value.trim();
    clearTimeout(typing);
    typing = setTimeout(() => page.again(), 200);
  };
  return [
    h("h1", { key: "title" }, "Decisions"),
    h("p", { key: "text", class: "lead" }, "Each line is one choice: who could have taken the session, who was passed over and for what reason, and who got it."),
    h("form", { class: "filters", key: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      h("label", null, "Session ", h("input", { type: "search", placeholder: "whole id", oninput: search, value: filter.session })),
      h("label", null, "Group ", h("select", { onchange: choose }, h("option", { value: "" }, "all"), seen.groups.map((name) => h("option", { key: name, value: name, selected: name === filter.group }, name))))),
    h("section", { class: "card", key: "decisions" }, decisionList(seen.decisions, { empty: filter.session || filter.group ? "No decision fits." : "No session has asked for a deployment yet." })),
  ];
}

/** Decisions as a table; used by one session's and one deployment's page too. */
export function decisionList(decisions, { empty = "None is remembered." } = {}) {
  const columns = [
    ["When", (one) => moment(one.at), "number"],
    ["Session", (one) => [h("a", { href: `#/sessions/${encodeURIComponent(one.session)}` }, one.session), h("small", null, `attempt ${one.attempt}${one.pass ? `, pass ${one.pass + 1}` : ""}`)], "id"],
    ["Group", (one) => [one.in_group ?? one.group, (one.in_group ?? one.group) === one.group ? null : h("small", null, `asked for ${one.group}`), one.order ? h("small", null, `order ${one.order}`) : null]],
    ["Chosen", (one) => [one.chosen === null ? "nobody" : h("a", { href: `#/deployments/${encodeURIComponent(one.chosen)}` }, one.chosen), h("small", null, words(one.why))], "name"],
    ["Candidates", (one) => list(one.candidates, (candidate) => [candidate.id, h("small", null, `${count(candidate.sessions)} ${candidate.sessions === 1 ? "session" : "sessions"}, weight ${count(candidate.weight)}`)]), "wide"],
    ["Passed over", (one) => [list(one.passed_over, (passed) => [passed.id, h("small", null, words(passed.reason))]), one.left_out ? h("small", null, `${count(one.left_out)} more are not named`) : null], "wide"],
  ];
  // Two lines may be alike in everything but their place.
  const seen = new Map();
  const key = (one) => {
    const name = `${one.at} ${one.session} ${one.attempt}`;
    seen.set(name, (seen.get(name) ?? 0) + 1);
    return `${name} ${seen.get(name)}`;
  };
  return table("Decisions", columns, decisions, { key, empty });
}

const list = (items, show) => (items?.length ? h("ul", { class: "plain" }, items.map((item) => h("li", null, show(item)))) : "–");
