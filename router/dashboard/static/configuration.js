// The generation in force, and what is wrong with the file.

import { get, post } from "./api.js";
import { confirm, notify } from "./dialogs.js";
import { badge, count, facts, h, moment, table } from "./dom.js";

export const load = () => get("admin/config");

const TRIGGERS = { start: "the start", signal: "a signal (SIGHUP)", file: "a change of the file", api: "a request" };

export function show(config, path, page) {
  const last = config.last_reload ?? null;
  const reload = () => confirm({
    title: "Reload the configuration",
    text: "The file is read and checked. A valid one takes effect at once, and running sessions go on; an invalid one changes nothing.",
    button: "Reload",
    act: () => post("admin/reload"),
  }).then((done) => {
    if (done) notify("The configuration was reloaded.");
    return page.again();
  });
  return [
    h("h1", { key: "title" }, "Configuration"),
    h("section", { class: "card", key: "state", "aria-label": "Generation" },
      h("div", { class: "buttons" }, h("button", { class: "primary", onclick: reload }, "Reload…")),
      facts(
        ["Generation", count(config.generation)],
        ["File", h("code", null, config.file ?? "–")],
        ["In force since", moment(config.loaded_at)],
        ["Watched", config.watching ? "yes: a change of the file is a reload" : "no: reload by SIGHUP or here"],
        last && ["Last reload", [moment(last.at), ` by ${TRIGGERS[last.trigger] ?? last.trigger}`]],
        last && ["Result", last.successful ? badge("ok", "taken") : badge("failed", "refused")])),
    config.restart_needed?.length
      ? h("section", { class: "card", key: "restart" }, h("h2", null, "Needs a restart"),
          h("p", null, "The file says something else about these than what is in force; they cannot change while the process runs."),
          h("ul", { class: "keys" }, config.restart_needed.map((key) => h("li", { key }, h("code", null, key)))))
      : null,
    last?.errors?.length ? h("section", { class: "card", key: "errors" }, h("h2", null, "Errors"), problems("Errors", last.errors)) : null,
    last?.warnings?.length ? h("section", { class: "card", key: "warnings" }, h("h2", null, "Warnings"), problems("Warnings", last.warnings)) : null,
    last && !last.errors?.length && !last.warnings?.length ? h("p", { key: "fine", class: "empty" }, "The file has neither errors nor warnings.") : null,
  ];
}

function problems(label, items) {
  const columns = [
    ["Line", (one) => (Number.isFinite(one.line) ? count(one.line) : "–"), "number"],
    ["Place", (one) => [h("code", null, one.path || "–"), one.file ? h("small", null, one.file) : null], "wide"],
    ["Found", (one) => one.found || one.text || "–", "wide"],
    ["Expected", (one) => [one.expected || "–", one.hint ? h("small", null, one.hint) : null], "wide"],
  ];
  return table(label, columns, items.map((item, index) => ({ ...item, index })), { key: (one) => one.index });
}
