// Replicas and workers.

import { get } from "./api.js";
import { badge, count, duration, facts, h, table, words } from "./dom.js";

export const load = () => get("admin/fleet");

const MODES = {
  local: "Of the others nothing is known now: each goes by its own part of the limits.",
  fresh: "What the others hold is known.",
  ageing: "What the others hold was known some seconds ago.",
};

export function show(seen) {
  const { fleet, workers } = seen;
  const rows = Array.isArray(workers) ? workers : [];
  return [
    h("h1", { key: "title" }, "Fleet"),
    h("section", { class: "card", key: "fleet" }, h("h2", null, "Replicas"),
      fleet
        ? facts(["Mode", badge(fleet.mode, words(fleet.mode))], ["Meaning", MODES[fleet.mode] ?? words(fleet.mode)], ["Members", count(fleet.members)], ["This member", h("code", null, fleet.member ?? "–")], ["Picture's age", Number.isFinite(fleet.picture_age_s) ? duration(fleet.picture_age_s) : "–"])
        : h("p", { class: "empty" }, "This router stands alone: no server of a fleet is configured.")),
    h("section", { class: "card", key: "workers" }, h("h2", null, "Workers"),
      table("Workers", [
        ["Worker", (one) => count(one.worker), "number"],
        ["State", (one) => (one.serving ? badge("ok", "serving") : seen.draining ? badge("draining") : badge("failed", "not serving"))],
        ["Process", (one) => String(one.pid ?? "–"), "number"],
        ["Sessions", (one) => count(one.sessions), "number"],
      ], rows, { key: (one) => one.worker, empty: "One process serves; there are no workers." })),
  ];
}
